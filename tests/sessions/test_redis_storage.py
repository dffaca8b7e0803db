"""Sessions and conversations in a real Redis: what they hold there, for how long, and who holds a conversation."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from aiochatstream.conversations.redis_store import RedisConversationStore
from aiochatstream.errors import ConversationBusy, ConversationChanged
from aiochatstream.sessions.redis_storage import RedisStorage
from tests.helpers import PATIENCE, until
from tests.redis_server import RedisServer
from tests.sessions.conftest import NewUser
from tests.sessions.test_session_storage import ONE, TWO
from tests.sessions.users import cookie_of

pytestmark = pytest.mark.both_loops


@dataclass
class Answer:
    """One that is asked to stop."""

    message_id: str
    asked: list[str] = field(default_factory=list)

    def stop(self, reason: str) -> None:
        self.asked.append(reason)


async def the_key(redis: Redis, kind: str) -> str:
    (key,) = [key.decode() async for key in redis.scan_iter(f"*{kind}*")]
    return str(key)


async def test_what_is_kept_is_json_that_can_be_read(redis: Redis, new_user: NewUser) -> None:
    await RedisConversationStore(redis).save("Ann", "main", ONE, expected_number=0)
    kept = await redis.hget("aiochatstream:conversation:main:Ann", "json")
    assert json.loads(kept) == json.loads(json.dumps(ONE.to_dict()))
    cookie = cookie_of(await (await new_user(RedisStorage(redis))).remember("blue"))
    session = json.loads(await redis.get(f"aiochatstream:session:{cookie.value}"))
    assert session["session"] == {"note": "blue"}


async def test_each_use_begins_the_time_anew_that_something_is_kept(redis: Redis, new_user: NewUser) -> None:
    store, user = RedisConversationStore(redis, ttl=100), await new_user(RedisStorage(redis, ttl=100))
    await store.save("Ann", "main", ONE, expected_number=0)
    await user.remember("blue")
    for kind in ("conversation", "session"):
        key = await the_key(redis, kind)
        assert 90_000 < await redis.pttl(key) <= 100_000
        await redis.pexpire(key, 5000)
    await store.load("Ann", "main")
    await user.recall()
    for kind in ("conversation", "session"):
        assert await redis.pttl(await the_key(redis, kind)) > 90_000


@pytest.mark.parametrize("kind", [RedisConversationStore, RedisStorage])
@pytest.mark.parametrize("ttl", [0, -1, float("nan")])
async def test_a_ttl_must_be_above_0(redis: Redis, kind: type, ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl: must be above 0"):
        kind(redis, ttl=ttl)


async def test_nothing_is_kept_of_sessions_that_hold_nothing_or_nothing_any_more(
    redis: Redis, new_user: NewUser
) -> None:
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
    known, new = await new_user(storage), await new_user(storage)
    await known.remember("blue")
    redis_server.kill()
    for response in (await known.recall(), await new.remember("red")):
        assert (response.status, (await response.json())["error"]) == (503, "store_unavailable")
        assert int(response.headers["Retry-After"]) >= 1
        assert not response.cookies
    redis_server.start()
    await known.remember("green")
    assert await known.recalls() == "green"


async def test_apps_with_other_prefixes_do_not_meet(redis: Redis, new_user: NewUser) -> None:
    one, other = (RedisConversationStore(redis, prefix=prefix) for prefix in ("one:", "other:"))
    await one.save("Ann", "main", ONE, expected_number=0)
    assert await other.load("Ann", "main") is None
    async with one.hold("Ann", "main", Answer("1")), other.hold("Ann", "main", Answer("2")):
        pass
    given = cookie_of(await (await new_user(RedisStorage(redis, prefix="one:"))).remember("blue")).value
    assert await (await new_user(RedisStorage(redis, prefix="other:"))).recalls(cookie=given) == "nothing"


async def test_ids_and_names_with_separators_do_not_collide(redis: Redis) -> None:
    store = RedisConversationStore(redis)
    pairs = [("a", "b/c"), ("a/b", "c"), ("c:a", "b"), ("a", "b"), ("a:b", "c"), ("b:a", "c")]
    for number, (user_id, name) in enumerate(pairs):
        await store.save(user_id, name, ONE.begin(f"id {number}"), expected_number=0)
    assert [(await store.load(*pair)).turn_id for pair in pairs] == [  # type: ignore[union-attr]
        f"id {number}" for number in range(len(pairs))
    ]


async def test_of_concurrent_saves_with_the_same_expected_number_one_succeeds(redis: Redis) -> None:
    stores = [RedisConversationStore(redis) for _ in range(2)]
    await stores[0].save("Ann", "main", ONE, expected_number=0)
    tries = [ONE.begin(f"id {number}") for number in range(20)]
    results = await asyncio.gather(
        *(stores[at % 2].save("Ann", "main", conversation, expected_number=1) for at, conversation in enumerate(tries)),
        return_exceptions=True,
    )
    won = [conversation for conversation, result in zip(tries, results, strict=True) if result is None]
    assert won == [await stores[0].load("Ann", "main")]
    assert sum(isinstance(result, ConversationChanged) for result in results) == 19
    await stores[0].save("Ann", "main", won[0], expected_number=1)  # tried again, as when the reply was lost


async def test_a_late_save_does_not_restore_a_deleted_conversation(redis: Redis) -> None:
    store = RedisConversationStore(redis)
    await store.save("Ann", "main", ONE, expected_number=0)
    await store.forget("Ann", "main")
    with pytest.raises(ConversationChanged):
        await store.save("Ann", "main", TWO, expected_number=1)
    assert "東京" not in (await redis.hget("aiochatstream:conversation:main:Ann", "json")).decode()


async def test_a_held_conversation_is_busy_until_it_is_released(redis: Redis) -> None:
    here, there = RedisConversationStore(redis), RedisConversationStore(redis)
    async with here.hold("Ann", "main", Answer("1")):
        async with there.hold("Ann", "other", Answer("2")), there.hold("Bob", "main", Answer("3")):
            pass
        with pytest.raises(ConversationBusy):
            async with there.hold("Ann", "main", Answer("4")):
                pass
        waiting = asyncio.create_task(enter(there, "5"))  # within the time that a holder has to end
    assert await waiting
    assert await redis.dbsize() == 0


async def enter(store: RedisConversationStore, message_id: str) -> bool:
    async with store.hold("Ann", "main", Answer(message_id)):
        return True


async def test_the_hold_of_a_killed_process_expires(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RedisConversationStore(redis)
    monkeypatch.setattr("aiochatstream.conversations.redis_store.LOOK_SECONDS", 60.0)  # it does not renew it
    monkeypatch.setattr("aiochatstream.conversations.redis_store.FIRST_HOLD_MS", 300)
    async with store.hold("Ann", "main", Answer("killed")), store.hold("Ann", "main", Answer("next")):
        pass


async def test_a_hold_is_renewed_while_it_lasts(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RedisConversationStore(redis)
    async with store.hold("Ann", "main", Answer("1")):
        key = await the_key(redis, "hold")
        for _ in range(2):
            await redis.pexpire(key, 5000)
            async with asyncio.timeout(PATIENCE):
                while await redis.pttl(key) <= 5000:
                    await asyncio.sleep(0.01)


async def test_a_hold_can_be_released_during_a_renewal(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiochatstream.conversations.redis_store.LOOK_SECONDS", 0.0001)
    store = RedisConversationStore(redis)
    async with asyncio.timeout(PATIENCE):
        for number in range(50):
            async with store.hold("Ann", "main", Answer(str(number))):
                await asyncio.sleep(0.0003 * (number % 7))  # at all points of a renewal
    assert await redis.dbsize() == 0


async def test_a_holder_that_lost_its_hold_does_not_affect_the_next_one(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = RedisConversationStore(redis), RedisConversationStore(redis)
    async with AsyncExitStack() as lost, AsyncExitStack() as other:
        await lost.enter_async_context(here.hold("Ann", "main", Answer("1")))
        await redis.delete(await the_key(redis, "hold"))
        await other.enter_async_context(there.hold("Ann", "main", Answer("2")))
        await until(lambda: "Answer 1 lost its hold" in caplog.text)
        await lost.aclose()
        assert await redis.hget(await the_key(redis, "hold"), "owner") == b"2"


async def test_a_stop_reaches_the_holder_in_another_process(redis: Redis) -> None:
    here, there = RedisConversationStore(redis), RedisConversationStore(redis)
    assert await there.stop("Ann", "main", "stopped") is None
    answer = Answer("1")
    async with here.hold("Ann", "main", answer):
        stopping = asyncio.create_task(there.stop("Ann", "main", "stopped"))
        await until(lambda: answer.asked)
        assert not stopping.done()
    assert await stopping == "1"
    async with here.hold("Ann", "main", answer):
        discarding, stopping = (
            asyncio.create_task(there.stop("Ann", "main", reason)) for reason in ("discarded", "stopped")
        )
        await until(lambda: "discarded" in answer.asked)  # which the other does not weaken
    assert await asyncio.gather(discarding, stopping) == ["1", "1"]
    assert await there.stop("Ann", "main", "stopped") is None


async def test_clients_that_decode_what_redis_says_do_as_well(redis_server: RedisServer, new_user: NewUser) -> None:
    async with Redis.from_url(redis_server.url, decode_responses=True) as redis:
        store = RedisConversationStore(redis)
        await store.save("Ann", "main", ONE, expected_number=0)
        assert await store.load("Ann", "main") == ONE
        answer = Answer("1")
        async with store.hold("Ann", "main", answer):
            stopping = asyncio.create_task(store.stop("Ann", "main", "stopped"))
            await until(lambda: answer.asked)
        assert await stopping == "1"
        user = await new_user(RedisStorage(redis))
        await user.remember("blue")
        assert await user.recalls() == "blue"


async def test_more_at_once_than_a_client_has_connections_all_get_their_answer(redis: Redis) -> None:
    store = RedisConversationStore(redis)
    await store.save("Ann", "main", ONE, expected_number=0)
    assert set(await asyncio.gather(*(store.load("Ann", "main") for _ in range(300)))) == {ONE}
