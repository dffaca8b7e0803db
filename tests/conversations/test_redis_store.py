"""Conversations in a real Redis: content and expiry of keys, and holds."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from aiochatstream.conversations.redis_store import RedisConversationStore
from aiochatstream.errors import ConversationBusy, ConversationChanged
from tests.conversations.samples import ONE, TWO
from tests.helpers import PATIENCE, until
from tests.redis_server import RedisServer, only_key

pytestmark = pytest.mark.both_loops

KEY = "aiochatstream:conversation:main:Ann"


@dataclass
class Answer:
    """A holder that records the reasons for which it should stop."""

    message_id: str
    reasons: list[str] = field(default_factory=list)

    def stop(self, reason: str) -> None:
        self.reasons.append(reason)


async def stored_json(redis: Redis) -> str:
    text = await redis.hget(KEY, "json")
    assert isinstance(text, bytes)
    return text.decode()


async def test_conversations_are_stored_as_json(redis: Redis) -> None:
    await RedisConversationStore(redis).save("Ann", "main", ONE, expected_number=0)
    assert json.loads(await stored_json(redis)) == json.loads(json.dumps(ONE.to_dict()))


async def test_loading_a_conversation_renews_its_expiry(redis: Redis) -> None:
    store = RedisConversationStore(redis, ttl=100)
    await store.save("Ann", "main", ONE, expected_number=0)
    assert 90_000 < await redis.pttl(KEY) <= 100_000
    await redis.pexpire(KEY, 5000)
    await store.load("Ann", "main")
    assert await redis.pttl(KEY) > 90_000


@pytest.mark.parametrize("ttl", [0, -1, float("nan")])
async def test_the_ttl_must_be_above_0(redis: Redis, ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl: must be above 0"):
        RedisConversationStore(redis, ttl=ttl)


async def test_prefixes_separate_applications(redis: Redis) -> None:
    first, second = (RedisConversationStore(redis, prefix=prefix) for prefix in ("first:", "second:"))
    await first.save("Ann", "main", ONE, expected_number=0)
    assert await second.load("Ann", "main") is None
    async with first.hold("Ann", "main", Answer("1")), second.hold("Ann", "main", Answer("2")):
        pass


async def test_ids_and_names_with_separators_do_not_collide(redis: Redis) -> None:
    store = RedisConversationStore(redis)
    pairs = [("a", "b/c"), ("a/b", "c"), ("c:a", "b"), ("a", "b"), ("a:b", "c"), ("b:a", "c")]
    for number, (user_id, name) in enumerate(pairs):
        await store.save(user_id, name, ONE.begin(f"id {number}"), expected_number=0)
    loaded = [await store.load(*pair) for pair in pairs]
    assert loaded == [ONE.begin(f"id {number}") for number in range(len(pairs))]


async def test_of_concurrent_saves_with_the_same_expected_number_one_succeeds(redis: Redis) -> None:
    stores = [RedisConversationStore(redis) for _ in range(2)]
    await stores[0].save("Ann", "main", ONE, expected_number=0)
    candidates = [ONE.begin(f"id {number}") for number in range(20)]
    results = await asyncio.gather(
        *(
            stores[index % 2].save("Ann", "main", conversation, expected_number=1)
            for index, conversation in enumerate(candidates)
        ),
        return_exceptions=True,
    )
    [saved] = [conversation for conversation, result in zip(candidates, results, strict=True) if result is None]
    assert saved == await stores[0].load("Ann", "main")
    assert sum(isinstance(result, ConversationChanged) for result in results) == 19
    await stores[0].save("Ann", "main", saved, expected_number=1)  # again, as if the reply was lost


async def test_a_late_save_does_not_restore_a_deleted_conversation(redis: Redis) -> None:
    store = RedisConversationStore(redis)
    await store.save("Ann", "main", ONE, expected_number=0)
    await store.forget("Ann", "main")
    with pytest.raises(ConversationChanged):
        await store.save("Ann", "main", TWO, expected_number=1)
    assert "東京" not in await stored_json(redis)


async def enter(store: RedisConversationStore, message_id: str) -> bool:
    async with store.hold("Ann", "main", Answer(message_id)):
        return True


async def test_a_held_conversation_is_busy_until_it_is_released(redis: Redis) -> None:
    here, there = RedisConversationStore(redis), RedisConversationStore(redis)
    async with here.hold("Ann", "main", Answer("1")):
        async with there.hold("Ann", "other", Answer("2")), there.hold("Bob", "main", Answer("3")):
            pass
        with pytest.raises(ConversationBusy):
            async with there.hold("Ann", "main", Answer("4")):
                pass
        waiting = asyncio.create_task(enter(there, "5"))  # before the time to wait for a holder is over
    assert await waiting
    assert await redis.dbsize() == 0


async def test_the_hold_of_a_killed_process_expires(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RedisConversationStore(redis)
    monkeypatch.setattr("aiochatstream.conversations.redis_store.RENEWAL_SECONDS", 60.0)  # no renewal
    monkeypatch.setattr("aiochatstream.conversations.redis_store.FIRST_HOLD_MS", 300)
    async with store.hold("Ann", "main", Answer("killed")), store.hold("Ann", "main", Answer("next")):
        pass


async def test_a_hold_is_renewed_while_it_lasts(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RedisConversationStore(redis)
    async with store.hold("Ann", "main", Answer("1")):
        key = await only_key(redis, "hold")
        for _ in range(2):
            await redis.pexpire(key, 5000)
            async with asyncio.timeout(PATIENCE):
                while await redis.pttl(key) <= 5000:
                    await asyncio.sleep(0.01)


async def test_a_hold_can_be_released_during_a_renewal(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiochatstream.conversations.redis_store.RENEWAL_SECONDS", 0.0001)
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
        await redis.delete(await only_key(redis, "hold"))
        await other.enter_async_context(there.hold("Ann", "main", Answer("2")))
        await until(lambda: "Answer 1 lost its hold" in caplog.text)
        await lost.aclose()
        assert await redis.hget(await only_key(redis, "hold"), "owner") == b"2"


async def test_a_stop_reaches_the_holder_in_another_process(redis: Redis) -> None:
    here, there = RedisConversationStore(redis), RedisConversationStore(redis)
    assert await there.stop("Ann", "main", "stopped") is None
    answer = Answer("1")
    async with here.hold("Ann", "main", answer):
        stopping = asyncio.create_task(there.stop("Ann", "main", "stopped"))
        await until(lambda: answer.reasons)
        assert not stopping.done()
    assert await stopping == "1"
    async with here.hold("Ann", "main", answer):
        discarding, stopping = (
            asyncio.create_task(there.stop("Ann", "main", reason)) for reason in ("discarded", "stopped")
        )
        await until(lambda: "discarded" in answer.reasons)  # has precedence over "stopped"
    assert [await discarding, await stopping] == ["1", "1"]
    assert await there.stop("Ann", "main", "stopped") is None


async def test_clients_may_decode_responses(redis_server: RedisServer) -> None:
    async with Redis.from_url(redis_server.url, decode_responses=True) as redis:
        store = RedisConversationStore(redis)
        await store.save("Ann", "main", ONE, expected_number=0)
        assert await store.load("Ann", "main") == ONE
        answer = Answer("1")
        async with store.hold("Ann", "main", answer):
            stopping = asyncio.create_task(store.stop("Ann", "main", "stopped"))
            await until(lambda: answer.reasons)
        assert await stopping == "1"


async def test_more_concurrent_loads_than_connections_succeed(redis: Redis) -> None:
    store = RedisConversationStore(redis)
    await store.save("Ann", "main", ONE, expected_number=0)
    assert set(await asyncio.gather(*(store.load("Ann", "main") for _ in range(300)))) == {ONE}
