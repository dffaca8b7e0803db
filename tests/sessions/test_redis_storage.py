"""Sessions in a real Redis: content and expiry of keys, and outages."""

from __future__ import annotations

import json

import pytest
from redis.asyncio import Redis

from aiochatstream.sessions.redis_storage import RedisStorage
from tests.redis_server import RedisServer, only_key
from tests.sessions.users import NewUser, cookie_of

pytestmark = pytest.mark.both_loops


async def test_sessions_are_stored_as_json(redis: Redis, new_user: NewUser) -> None:
    cookie = cookie_of(await (await new_user(RedisStorage(redis))).remember("blue"))
    text = await redis.get(f"aiochatstream:session:{cookie.value}")
    assert isinstance(text, bytes)
    assert json.loads(text)["session"] == {"note": "blue"}


async def test_loading_a_session_renews_its_expiry(redis: Redis, new_user: NewUser) -> None:
    user = await new_user(RedisStorage(redis, ttl=100))
    await user.remember("blue")
    key = await only_key(redis, "session")
    assert 90_000 < await redis.pttl(key) <= 100_000
    await redis.pexpire(key, 5000)
    await user.recall()
    assert await redis.pttl(key) > 90_000


@pytest.mark.parametrize("ttl", [0, -1, float("nan")])
async def test_the_ttl_must_be_above_0(redis: Redis, ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl: must be above 0"):
        RedisStorage(redis, ttl=ttl)


async def test_empty_sessions_are_not_stored(redis: Redis, new_user: NewUser) -> None:
    user = await new_user(RedisStorage(redis))
    await user.recall()
    assert await redis.dbsize() == 0
    await user.remember("blue")
    assert await redis.dbsize() == 1
    await user.invalidate()
    assert await redis.dbsize() == 0


async def test_without_redis_routes_of_the_application_return_503(
    redis: Redis, redis_server: RedisServer, new_user: NewUser
) -> None:
    storage = RedisStorage(redis)
    existing, new = await new_user(storage), await new_user(storage)
    await existing.remember("blue")
    redis_server.kill()
    for response in (await existing.recall(), await new.remember("red")):
        assert (response.status, (await response.json())["error"]) == (503, "store_unavailable")
        assert int(response.headers["Retry-After"]) >= 1
        assert not response.cookies
    redis_server.start()
    await existing.remember("green")
    assert await existing.recalls() == "green"


async def test_prefixes_separate_applications(redis: Redis, new_user: NewUser) -> None:
    first, second = [await new_user(RedisStorage(redis, prefix=prefix)) for prefix in ("first:", "second:")]
    identity = cookie_of(await first.remember("blue")).value
    assert await second.recalls(cookie=identity) == "nothing"


async def test_clients_may_decode_responses(redis_server: RedisServer, new_user: NewUser) -> None:
    async with Redis.from_url(redis_server.url, decode_responses=True) as redis:
        user = await new_user(RedisStorage(redis))
        await user.remember("blue")
        assert await user.recalls() == "blue"
