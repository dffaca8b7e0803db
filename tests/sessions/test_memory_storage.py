"""Sessions and conversations in memory: what does not fit or is not used goes."""

from __future__ import annotations

from typing import Any

import pytest

from aiochatstream import MemoryConversationStore, MemoryStorage
from tests.sessions.conftest import NewUser
from tests.sessions.test_session_storage import ONE
from tests.sessions.users import cookie_of


async def test_nothing_is_kept_of_sessions_that_hold_nothing_or_nothing_any_more(new_user: NewUser) -> None:
    storage = MemoryStorage()
    user = await new_user(storage)
    await user.recall()
    assert len(storage) == 0
    await user.remember("blue")
    assert len(storage) == 1
    await user.invalidate()
    assert len(storage) == 0


async def test_an_idle_session_is_dropped_and_its_id_is_not_adopted(new_user: NewUser) -> None:
    now = [0.0]
    storage = MemoryStorage(idle_seconds=60, clock=lambda: now[0])
    user = await new_user(storage)
    old = cookie_of(await user.remember("blue")).value
    now[0] = 60.0
    assert await user.recalls() == "blue"
    now[0] = 120.0
    assert await user.recalls() == "blue"
    now[0] = 181.0
    assert await user.recalls() == "nothing"
    assert cookie_of(await user.remember("red")).value != old


@pytest.mark.parametrize(
    "bound", [{"max_sessions": 2}, {"max_bytes": 2 * len('{"created": 1234567890, "session": {"note": "x"}}')}]
)
async def test_above_its_limits_the_storage_drops_the_least_recently_used_session(
    new_user: NewUser, bound: dict[str, Any]
) -> None:
    storage = MemoryStorage(**bound)
    first, second, third = [await new_user(storage) for _ in range(3)]
    await first.remember("1")
    await second.remember("2")
    assert await first.recalls() == "1"
    await third.remember("3")
    assert [await user.recalls() for user in (first, second, third)] == ["1", "nothing", "3"]
    assert len(storage) == 2


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
