"""Conversations in memory."""

from __future__ import annotations

from aiochatstream import MemoryConversationStore
from tests.conversations.samples import ONE


async def test_the_store_stays_within_its_limits() -> None:
    now = [0.0]
    store = MemoryConversationStore(max_conversations=2, idle_seconds=60, clock=lambda: now[0])
    await store.save("Ann", "main", ONE, expected_number=0)
    await store.save("Bob", "main", ONE, expected_number=0)
    await store.load("Ann", "main")
    now[0] = 30.0
    await store.save("Cid", "main", ONE, expected_number=0)
    assert await store.load("Bob", "main") is None
    assert len(store) == 2
    now[0] = 61.0
    assert await store.load("Ann", "main") is None
    assert await store.load("Cid", "main") == ONE
    small = MemoryConversationStore(max_bytes=300)
    for user in ("Ann", "Bob", "Cid"):
        await small.save(user, "main", ONE, expected_number=0)
    assert await small.load("Ann", "main") is None
    assert await small.load("Cid", "main") == ONE
