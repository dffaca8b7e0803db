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
    """Conversations in memory, as JSON text, within bounds; the least recently used goes first, but none under way.

    :param max_conversations: how many are kept.
    :param idle_seconds: how long one is kept after its last use.
    :param max_bytes: how much all of them may take.
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
        """Return this very store, as one that charges what is saved to ``share`` (see :class:`BoundedMap`)."""
        store = copy.copy(self)
        store._share = share
        return store

    @property
    def bytes(self) -> int:
        """What all of them take as text."""
        return self._conversations.bytes

    async def sweep(self) -> None:
        """Drop what was not used for too long, in pieces between which others have their turn."""
        more = True
        while more:
            more = self._conversations.sweep()
            await asyncio.sleep(0)

    async def load(self, user_id: str, name: str) -> Conversation | None:
        kept = self._conversations.get(_key(user_id, name))
        return None if kept is None else Conversation.from_dict(json.loads(kept))

    async def save(self, user_id: str, name: str, conversation: Conversation, *, expected_number: int) -> None:
        kept = await self.load(user_id, name)
        if kept is not None and kept.number != expected_number:
            raise ConversationChanged(f"The conversation is at turn {kept.number}, not {expected_number}.")
        text = json.dumps(conversation.to_dict(), ensure_ascii=False, separators=(",", ":"))
        self._conversations.put(_key(user_id, name), text, self._share)

    async def forget(self, user_id: str, name: str) -> bool:
        return self._conversations.pop(_key(user_id, name))

    @asynccontextmanager
    async def hold(self, user_id: str, name: str, holder: Holder) -> AsyncIterator[None]:
        """In this block, the conversation is kept, however many others there are. (No other process has it.)"""
        with self._conversations.pinned(_key(user_id, name)):
            yield


def _key(user_id: str, name: str) -> str:
    """No two pairs have the same, whatever characters an app's accounts have."""
    return json.dumps([user_id, name])
