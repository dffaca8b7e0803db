"""Backend for a model in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from aiochatstream.console.backend import Backend
from aiochatstream.conversations.export import ExportedConversation
from aiochatstream.conversations.memory_store import MemoryConversationStore
from aiochatstream.conversations.user import User
from aiochatstream.params import ParamOverrides
from aiochatstream.runtime.chat import Chat
from aiochatstream.runtime.events import Event

CONVERSATION = "main"


class LocalBackend(Backend):
    """Conversation with a model in this process.

    :param chat: an entered Chat that is ready.
    :param system: system prompt; empty for the model's default.
    """

    def __init__(self, chat: Chat, name: str, system: str = "") -> None:
        self.name = name
        self._chat, self._system = chat, system
        self._store = MemoryConversationStore()
        self._user = User("console", self._store)

    def answer(self, message: str | None, params: ParamOverrides) -> AsyncGenerator[Event, None]:
        return self._chat.answer(self._user, CONVERSATION, message, params, self._system)

    async def stop(self) -> bool:
        return await self._chat.stop_turn(self._user, CONVERSATION, "stopped") is not None

    async def clear(self) -> bool:
        return await self._chat.clear(self._user, CONVERSATION)

    def check(self, params: ParamOverrides) -> None:
        self._chat.override(params)

    async def get_system(self) -> str:
        return self._system

    async def set_system(self, text: str) -> None:
        self._system = text

    async def save(self) -> ExportedConversation:
        return ExportedConversation.of(await self._user.load(CONVERSATION), self._system)

    async def load(self, saved: ExportedConversation) -> None:
        conversation = saved.to_conversation()
        await self._store.forget(self._user.id, CONVERSATION)
        await self._store.save(self._user.id, CONVERSATION, conversation, expected_number=conversation.number)
        self._system = saved.system
