"""Stores of conversations: the interface, with each implementation."""

from __future__ import annotations

import pytest

from aiochatstream import ConversationStore, MemoryConversationStore
from aiochatstream.conversations.redis_store import RedisConversationStore
from aiochatstream.errors import ConversationChanged
from tests.conversations.samples import ONE, TWO


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest) -> ConversationStore:
    """Return an empty store, of each kind in turn."""
    if request.param == "memory":
        return MemoryConversationStore()
    return RedisConversationStore(request.getfixturevalue("redis"))


async def test_conversations_are_identified_by_user_and_name(store: ConversationStore) -> None:
    await store.save("Ann", "main", ONE, expected_number=0)
    await store.save("Ann", "other", TWO, expected_number=0)
    assert await store.load("Ann", "main") == ONE
    assert await store.load("Ann", "other") == TWO
    assert await store.load("Bob", "main") is None
    await store.save("Ann/main", "other", ONE, expected_number=0)  # a name with a namespace
    assert await store.load("Ann", "main/other") is None


async def test_a_save_with_another_expected_number_raises_and_changes_nothing(store: ConversationStore) -> None:
    await store.save("Ann", "main", ONE, expected_number=0)
    for wrong in (0, 2):
        with pytest.raises(ConversationChanged, match=f"is at turn 1, not {wrong}"):
            await store.save("Ann", "main", TWO, expected_number=wrong)
        assert await store.load("Ann", "main") == ONE
    await store.save("Ann", "main", TWO, expected_number=1)
    assert await store.load("Ann", "main") == TWO


async def test_the_first_save_accepts_any_expected_number(store: ConversationStore) -> None:
    await store.save("Ann", "main", TWO, expected_number=1)
    assert await store.load("Ann", "main") == TWO


async def test_forget_deletes_one_conversation_and_reports_if_it_existed(store: ConversationStore) -> None:
    await store.save("Ann", "main", ONE, expected_number=0)
    await store.save("Bob", "main", TWO, expected_number=0)
    assert await store.forget("Ann", "main")
    assert not await store.forget("Ann", "main")
    stored = await store.load("Ann", "main")
    assert stored is None or not stored.turns
    assert await store.load("Bob", "main") == TWO
