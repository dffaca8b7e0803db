"""Agents: clients without a session, whose conversations are not saved."""

from __future__ import annotations

from aiohttp import web
from aiohttp_session import Session

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.store import ConversationStore
from aiochatstream.sessions.memory_storage import recent_params
from aiochatstream.sessions.user_session import UserSession

SKIP_HEADER = "X-FastSession-Skip"


def is_agent(request: web.Request) -> bool:
    """Return True if the request declares that its client has no session."""
    return request.headers.get(SKIP_HEADER) == "skip"


class AgentSession(UserSession):
    """A new user for each request. Sessions of the application are neither read nor written."""

    def __init__(self, request: web.Request) -> None:
        super().__init__(request, Session(None, data=None, new=True), _NullStore(), recent_params())

    async def _refresh(self) -> None:
        """Do nothing: the session of the request belongs to another user."""

    async def save_with_stream(self, response: web.StreamResponse) -> None:
        """Do nothing: there is no session."""


class _NullStore(ConversationStore):
    """A store that saves nothing."""

    async def load(self, user_id: str, name: str) -> Conversation | None:
        return None

    async def save(self, user_id: str, name: str, conversation: Conversation, *, expected_number: int) -> None:
        pass

    async def forget(self, user_id: str, name: str) -> bool:
        return False
