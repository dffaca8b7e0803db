"""Conversations in the memory of this process."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.lru import COMMON, BoundedMap
from aiochatstream.conversations.store import ConversationStore, Holder
from aiochatstream.errors import ConversationChanged

DAY = 86_400.0
MIB = 1 << 20


class MemoryConversationStore(ConversationStore):
    """A bounded store in the memory of this process. The least recently used conversation is dropped first, but never
    one with a running turn.

    :param max_conversations: maximum number of conversations, above 0.
    :param idle_seconds: seconds to keep a conversation after its last use, above 0.
    :param max_bytes: maximum bytes of all conversations as JSON, above 0.
    """

    def __init__(
        self,
        *,
        max_conversations: int = 10_000,
        idle_seconds: float = DAY,
        max_bytes: int = 256 * MIB,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._conversations = BoundedMap(
            max_entries=max_conversations, idle_seconds=idle_seconds, max_bytes=max_bytes, clock=clock
        )

        self._share = COMMON

    def __len__(self) -> int:
        return len(self._conversations)

    def charged_to(self, share: str) -> MemoryConversationStore:
        """Return a view of this store that charges what it saves to ``share`` (see :class:`BoundedMap`)."""
        store = copy.copy(self)
        store._share = share
        return store

    @property
    def bytes(self) -> int:
        """Bytes of all conversations as JSON."""
        return self._conversations.bytes

    async def sweep(self) -> None:
        """Drop idle conversations, and yield to the event loop between batches."""
        more = True
        while more:
            more = self._conversations.sweep()
            await asyncio.sleep(0)

    async def load(self, user_id: str, name: str) -> Conversation | None:
        text = self._conversations.get(_key(user_id, name))
        return None if text is None else Conversation.from_dict(json.loads(text))

    async def save(self, user_id: str, name: str, conversation: Conversation, *, expected_number: int) -> None:
        stored = await self.load(user_id, name)
        if stored is not None and stored.number != expected_number:
            raise ConversationChanged(f"The conversation is at turn {stored.number}, not {expected_number}.")
        text = json.dumps(conversation.to_dict(), ensure_ascii=False, separators=(",", ":"))
        self._conversations.put(_key(user_id, name), text, self._share)

    async def forget(self, user_id: str, name: str) -> bool:
        return self._conversations.pop(_key(user_id, name))

    @asynccontextmanager
    async def hold(self, user_id: str, name: str, holder: Holder) -> AsyncIterator[None]:
        """Protect the conversation from being dropped in this block. (No other process has it.)"""
        with self._conversations.pinned(_key(user_id, name)):
            yield


def _key(user_id: str, name: str) -> str:
    """Return a unique key for the pair, which may contain any characters."""
    return json.dumps([user_id, name])
