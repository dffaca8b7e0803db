"""An agent: a client without a session, of whose conversation nothing lasts."""

from __future__ import annotations

from aiohttp import web
from aiohttp_session import Session

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.store import ConversationStore
from aiochatstream.sessions.memory_storage import recent_params
from aiochatstream.sessions.user_session import UserSession

SKIP_HEADER = "X-FastSession-Skip"


def is_agent(request: web.Request) -> bool:
    """Whether the client says that it has no session."""
    return request.headers.get(SKIP_HEADER) == "skip"


class AgentSession(UserSession):
    """A user that is new with each request. The app's sessions are neither read nor written."""

    def __init__(self, request: web.Request) -> None:
        super().__init__(request, Session(None, data=None, new=True), _Nowhere(), recent_params())

    async def _refresh(self) -> None:
        """What the request's own session holds is another user's."""

    async def save_with_stream(self, response: web.StreamResponse) -> None:
        """There is none."""


class _Nowhere(ConversationStore):
    """Keeps nothing."""

    async def load(self, user_id: str, name: str) -> Conversation | None:
        return None

    async def save(self, user_id: str, name: str, conversation: Conversation, *, expected_number: int) -> None:
        pass

    async def forget(self, user_id: str, name: str) -> bool:
        return False
