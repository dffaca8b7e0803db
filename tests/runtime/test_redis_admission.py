"""Slots and a queue that several servers share, in a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing

import pytest
from redis.asyncio import Redis

from aiochatstream.errors import TooManyRequests
from aiochatstream.runtime import redis_admission
from aiochatstream.runtime.admission import Ticket
from aiochatstream.runtime.redis_admission import RedisAdmission
from tests.helpers import until
from tests.redis_server import RedisServer

pytestmark = pytest.mark.both_loops

NewFront = Callable[..., Awaitable[RedisAdmission]]


@pytest.fixture
async def new_front(redis_server: RedisServer) -> AsyncIterator[NewFront]:
    """Yield a function that opens a front with a Redis client of its own, like a server process."""
    fronts: list[tuple[RedisAdmission, Redis]] = []

    async def make(slots: int = 1, queue_size: int = 10, name: str = "test") -> RedisAdmission:
        client = Redis.from_url(redis_server.url)
        front = RedisAdmission(client, name, slots, queue_size)
        fronts.append((front, client))
        await front.open()
        return front

    yield make
    for front, client in fronts:
        await front.close()
        await client.aclose()


async def calls_of(redis: Redis) -> int:
    """Return the number of reports that Redis has received."""
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


async def reserve(*fronts: RedisAdmission) -> list[Ticket]:
    """Reserve at each front, one after the other."""
    return [await front.reserve() for front in fronts]


def running(tickets: Sequence[Ticket]) -> list[bool]:
    return [ticket.running for ticket in tickets]


async def test_fronts_share_slots_and_a_queue_in_the_order_of_arrival(new_front: NewFront) -> None:
    here, there, elsewhere = [await new_front(2, 4) for _ in range(3)]
    tickets = await reserve(here, there, elsewhere, here, there, here)
    assert running(tickets) == [True, True, False, False, False, False]
    assert [ticket.position for ticket in tickets] == [0, 0, 1, 2, 3, 4]
    for front in (here, there, elsewhere):
        with pytest.raises(TooManyRequests, match="All 2 slots and all 4 places in the queue are in use"):
            await front.reserve()
        await until(lambda: (front.total_running, front.total_waiting) == (2, 4))  # noqa: B023 - awaited here
    for number in range(4):
        tickets[number].release()
        await until(lambda: tickets[number + 2].running)  # noqa: B023 - awaited here
        assert running(tickets[number + 3 :]) == [False] * (3 - number)
    assert [front.running for front in (here, there, elsewhere)] == [1, 1, 0]


async def test_positions_count_the_tickets_of_all_fronts(new_front: NewFront) -> None:
    here, there = await new_front(), await new_front()
    tickets = await reserve(here, there, here, there, there)
    positions: list[int] = []

    async def listen() -> None:
        async with aclosing(tickets[-1].positions()) as iterator:
            async for position in iterator:
                positions.append(position)

    listening = asyncio.create_task(listen())
    for ticket, expected in zip(
        [*tickets[1:3], tickets[0], tickets[3]], ([4], [4, 3], [4, 3, 2], [4, 3, 2, 1]), strict=True
    ):
        await until(lambda: positions == expected)  # noqa: B023 - awaited here
        ticket.release()
    await listening
    assert tickets[-1].running


async def test_one_report_contains_all_changes(
    new_front: NewFront, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_admission, "RENEWAL_SECONDS", 3600)
    monkeypatch.setattr(redis_admission, "LEASE_SECONDS", 3600)
    front = await new_front(1000, 0)
    before = await calls_of(redis)
    tickets = await asyncio.gather(*[front.reserve() for _ in range(1000)])
    assert all(running(tickets))
    assert await calls_of(redis) == before + 1
    for ticket in tickets:
        ticket.release()
    other = await new_front(1000, 0)  # its first report
    await until(lambda: other.total_running == 0)
    await asyncio.gather(*[other.reserve() for _ in range(1000)])
