"""Sessions in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from aiochatstream import MemoryStorage
from tests.sessions.users import NewUser, cookie_of


async def test_empty_sessions_are_not_stored(new_user: NewUser) -> None:
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


TWO_SESSIONS = 2 * len('{"created": 1234567890, "session": {"note": "x"}}')


@pytest.mark.parametrize(
    "make", [partial(MemoryStorage, max_sessions=2), partial(MemoryStorage, max_bytes=TWO_SESSIONS)]
)
async def test_above_its_limits_the_storage_drops_the_least_recently_used_session(
    new_user: NewUser, make: Callable[[], MemoryStorage]
) -> None:
    storage = make()
    first, second, third = [await new_user(storage) for _ in range(3)]
    await first.remember("1")
    await second.remember("2")
    assert await first.recalls() == "1"
    await third.remember("3")
    assert [await user.recalls() for user in (first, second, third)] == ["1", "nothing", "3"]
    assert len(storage) == 2
