"""Slots and a queue that several servers share, in a real Redis."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from aiochatstream.errors import Draining, TooManyRequests
from aiochatstream.runtime import redis_admission, shared_queue
from aiochatstream.runtime.admission import Admission, Ticket
from aiochatstream.runtime.redis_admission import RedisAdmission
from aiochatstream.runtime.shared_queue import LEASE_SECONDS, FrontReport, QueueState, SharedQueue, WholeReport
from tests.helpers import until
from tests.processes import PYTHON, START_PATIENCE, Process
from tests.processes import running as running_process
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


async def test_a_report_contains_all_changes(
    new_front: NewFront, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_admission, "RENEWAL_SECONDS", 3600)
    monkeypatch.setattr(shared_queue, "LEASE_SECONDS", 3600)
    front = await new_front(1001, 0)  # a full queue has regular reports
    before = await calls_of(redis)
    tickets = await asyncio.gather(*[front.reserve() for _ in range(1000)])
    assert all(running(tickets))
    assert await calls_of(redis) == before + 1
    for ticket in tickets:
        ticket.release()
    await until(lambda: front.total_running == 0)
    assert await calls_of(redis) == before + 2


async def test_fronts_decide_like_a_single_server(new_front: NewFront, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_admission, "TICK_SECONDS", 0.001)
    monkeypatch.setattr(redis_admission, "RENEWAL_SECONDS", 0.005)
    rng = random.Random(5)  # noqa: S311 - a fixed sequence
    fronts = [await new_front(3, 5) for _ in range(3)]
    single = Admission(3, 5)
    pairs: list[tuple[Ticket, Ticket]] = []
    reports: list[int] = []

    def alike() -> bool:
        if any(front._queue._number < number + 2 for front, number in zip(fronts, reports, strict=True)):
            return False  # the last change may not have been reported
        totals = {(front.total_running, front.total_waiting) for front in fronts}
        return totals == {(single.running, single.waiting)} and all(
            ours.running == theirs.running and (ours.position == theirs.position or theirs.position > 3)
            for ours, theirs in pairs
        )

    refused = 0
    for _ in range(200):
        if rng.random() < 0.55:
            count = rng.choice([1, 1, 1, 2, 5])
            front = rng.choice(fronts)
            try:
                expected = await single.reserve_all(count)
            except TooManyRequests as error:
                refused += 1
                with pytest.raises(TooManyRequests, match=re.escape(error.detail)):
                    await front.reserve_all(count)
            else:
                pairs += zip(await front.reserve_all(count), expected, strict=True)
        elif pairs:
            for ticket in pairs.pop(rng.randrange(len(pairs))):
                ticket.release()
        reports[:] = [front._queue._number for front in fronts]
        await until(alike)
    assert refused > 10


async def test_a_large_request_leaves_places_to_other_fronts(new_front: NewFront) -> None:
    here, there = await new_front(2, 6), await new_front(2, 6)
    large = [*await here.reserve_all(100), *await there.reserve_all(100), *await here.reserve_all(100)]
    await until(lambda: (there.total_running, there.total_waiting) == (2, 3))
    for front in (here, there):
        with pytest.raises(TooManyRequests, match="Other requests for many answers use all the places"):
            await front.reserve_all(100)
    small = await reserve(there, here)
    assert [ticket.position for ticket in small] == [4, 5]
    large[0].release()
    await until(lambda: large[100].running and (here.total_waiting, large[2].position) == (5, 5))


async def test_the_fronts_use_the_smallest_number_of_slots(new_front: NewFront) -> None:
    here, there = await new_front(3), await new_front(2)
    tickets = await reserve(here, here, there, there)
    assert running(tickets) == [True, True, False, False]
    there.resize(4)
    await until(lambda: tickets[2].running)
    assert [tickets[3].position, there.slots] == [1, 3]
    here.resize(1)
    await until(lambda: there.slots == here.slots == 1)
    assert running(tickets) == [True, True, True, False]
    for ticket in tickets[:2]:
        ticket.release()
    await until(lambda: there.total_running == 1)
    assert not tickets[3].running
    tickets[2].release()
    await until(lambda: tickets[3].running)
    with pytest.raises(ValueError, match=r"^slots: must be a whole number from 0 to 100000, not -1\.$"):
        here.resize(-1)


async def test_a_front_without_slots_holds_up_nobody_and_returns_to_its_places(new_front: NewFront) -> None:
    here, there = await new_front(), await new_front()
    tickets = await reserve(there, here, there, here)
    here.resize(0)
    outside = await here.reserve()
    tickets[0].release()
    await until(lambda: tickets[2].running)
    assert (here.slots, there.slots) == (0, 1)
    last = await there.reserve()
    here.resize(1)
    await until(lambda: there.total_waiting == 4)
    order = [tickets[2], tickets[1], tickets[3], outside, last]
    for before, after in pairwise(order):
        assert running(order).count(True) == 1
        before.release()
        await until(lambda: after.running)  # noqa: B023 - awaited here


async def test_fronts_can_start_without_slots(new_front: NewFront) -> None:
    here, there = await new_front(0), await new_front(0)
    tickets = await reserve(here, there)
    here.resize(1)
    await until(lambda: tickets[0].running)
    assert not tickets[1].running


async def test_a_cancelled_reservation_leaves_no_ticket(new_front: NewFront) -> None:
    here, there = await new_front(), await new_front()
    for sleeps in range(8):
        reserving = asyncio.create_task(here.reserve_all(3))
        for _ in range(sleeps):
            await asyncio.sleep(0)
        reserving.cancel()
        await asyncio.gather(reserving, return_exceptions=True)
        if not reserving.cancelled():
            for ticket in reversed(reserving.result()):
                ticket.release()
    ticket = await there.reserve()
    await until(lambda: ticket.running and here.total_running == 1 and here.total_waiting == 0)


async def test_a_reservation_that_is_cancelled_after_the_decision_is_released(
    new_front: NewFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = await new_front()
    reserving = asyncio.create_task(front.reserve())
    answer = front._answer

    def answer_and_cancel(*args: Any) -> None:
        answer(*args)
        reserving.cancel()

    monkeypatch.setattr(front, "_answer", answer_and_cancel)
    with pytest.raises(asyncio.CancelledError):
        await reserving
    monkeypatch.undo()
    assert front.running == 0
    assert (await front.reserve()).running


async def test_a_ticket_that_leaves_while_it_is_granted_frees_its_slot(
    new_front: NewFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = await new_front(), await new_front()
    first, leaving, last = await reserve(there, here, there)
    report = here._queue.report
    granted: list[int] = []

    async def report_and_leave(changes: FrontReport) -> QueueState | None:
        state = await report(changes)
        if state is not None and state.granted:
            granted.extend(state.granted)
            leaving.release()
        return state

    monkeypatch.setattr(here._queue, "report", report_and_leave)
    first.release()
    await until(lambda: last.running)
    assert granted == [leaving.number]
    assert (here.running, there.total_running, there.total_waiting) == (0, 1, 0)


async def test_a_draining_front_refuses_its_own_requests_only(new_front: NewFront) -> None:
    here, there = await new_front(), await new_front()
    tickets = await reserve(here, here, there, here)
    pending = asyncio.create_task(here.reserve())
    await asyncio.sleep(0)
    here.drain()
    for waiter in (pending, anext(tickets[1].positions()), here.reserve()):
        with pytest.raises(Draining):
            await waiter
    await until(lambda: there.total_waiting == 1)
    assert (tickets[0].running, tickets[2].position) == (True, 1)
    tickets[0].release()
    await until(lambda: tickets[2].running)
    await here.close()
    await until(lambda: there._state.fronts == 1)


async def test_a_front_that_closes_frees_its_slots_and_places(new_front: NewFront) -> None:
    here, there = await new_front(), await new_front()
    *_, ticket = await reserve(here, here, there)
    await here.close()
    await until(lambda: ticket.running)
    assert (there.total_running, there.total_waiting) == (1, 0)


async def test_queues_with_different_names_are_independent(new_front: NewFront) -> None:
    tickets = await reserve(await new_front(), await new_front(name="other"))
    assert running(tickets) == [True, True]
    with pytest.raises(ValueError, match=r"^name: must be 1 to 64 of A-Z a-z 0-9 - _ and dots, not 'a b'\.$"):
        RedisAdmission(Redis(), "a b", 1, 1)


async def test_fronts_know_the_load_of_upstreams_and_redis_knows_no_addresses(
    new_front: NewFront, redis: Redis
) -> None:
    here, there, elsewhere = [await new_front() for _ in range(3)]
    here.load = lambda: {"http://secret:1": 2, "http://secret:2": 3}
    elsewhere.load = lambda: {"http://secret:1": 4}
    await reserve(here, elsewhere, there)
    assert [there.other_load(f"http://secret:{number}") for number in range(3)] == [0, 6, 3]
    await until(lambda: here.other_load("http://secret:1") == 4)
    keys = [key async for key in redis.scan_iter("*")]
    assert len(keys) == 2
    for key in keys:
        assert await redis.ttl(key) > 0
        assert b"secret" not in (await redis.dump(key) or b"")


async def test_a_report_that_arrives_twice_or_late_changes_nothing(redis: Redis) -> None:
    def changes(**values: Any) -> FrontReport:
        fields: dict[str, Any] = {"slots": 2, "queue_size": 9, "large": 0, "load": {}, "requests": []}
        return FrontReport(**fields | values)

    queue = SharedQueue(redis, "test")
    assert await queue.report(changes(requests=[(1, 1)])) is None, "a front that is unknown reports everything first"
    whole = WholeReport(**vars(changes()), running=0, waiting=[], fronts=1)
    assert await queue.report(whole)
    state = await queue.report(changes(requests=[(1, 1)]))
    assert state is not None
    assert (state.places, state.granted, state.running) == ([1], [1], 1)
    queue._number -= 1
    assert await queue.report(changes(requests=[(1, 1)])) is None
    queue._number -= 2
    assert await queue.report(whole) is None
    queue._number += 5
    assert await queue.report(changes(freed=1)) is None, "a report is missing"
    other = await SharedQueue(redis, "test").report(whole)
    assert other is not None
    assert (other.fronts, other.running, other.waiting) == (2, 1, 0)


def fail(redis_server: RedisServer, failure: str) -> None:
    redis_server.pause() if failure == "paused" else redis_server.kill()


def recover(redis_server: RedisServer, failure: str) -> None:
    redis_server.resume() if failure == "paused" else redis_server.start()


@pytest.mark.parametrize("failure", ["paused", "killed"])
async def test_without_redis_each_front_uses_its_part_and_returns_to_the_queue(
    new_front: NewFront, redis_server: RedisServer, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    here, there = await new_front(4), await new_front(4)
    tickets = await reserve(here, here, here, there, here, there)
    assert [ticket.position for ticket in tickets] == [0, 0, 0, 0, 1, 2]
    caplog.set_level(logging.WARNING)
    fail(redis_server, failure)
    tickets += await asyncio.gather(here.reserve(), there.reserve())  # refused by nobody
    await until(lambda: not here._connected and not there._connected)
    assert (here.slots, there.slots) == (2, 2)
    assert running(tickets) == [True, True, True, True, False, True, False, False]  # there has 2 of its own now
    assert [ticket.position for ticket in tickets] == [0, 0, 0, 0, 1, 0, 2, 1]
    recover(redis_server, failure)
    await until(lambda: here.total_running == there.total_running == 5)
    assert (here.slots, there.slots) == (4, 4)
    await until(lambda: here.total_waiting == 3 and tickets[7].position in (2, 3))
    tickets[0].release()
    await until(lambda: here.total_running == there.total_running == 4)
    assert not tickets[4].running
    tickets[1].release()
    await until(lambda: tickets[4].running)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("aiochatstream")]
    lost = [message for message in messages if message.startswith("Redis is not available for the shared queue: ")]
    assert len(lost) == 2, messages
    assert messages.count("Redis is available for the shared queue again.") == 2
    assert len(messages) == 4


async def test_after_a_restart_of_redis_nobody_takes_the_slots_of_fronts_that_have_not_returned(
    new_front: NewFront, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = await new_front(4), await new_front(4)
    tickets = await reserve(here, here, there, there, here, there)
    redis_server.kill()
    await until(lambda: not here._connected and not there._connected)
    connect = there._connect
    returning = asyncio.Event()

    async def connect_later() -> None:
        await returning.wait()
        await connect()

    monkeypatch.setattr(there, "_connect", connect_later)
    redis_server.start()
    await until(lambda: here._connected and here._state.fronts == 1)
    assert (here.total_running, here.running, tickets[4].running) == (2, 2, False)
    returning.set()
    await until(lambda: here.total_running == there.total_running == 4)
    tickets[3].release()
    await until(lambda: tickets[4].running)
    assert not tickets[5].running


async def test_a_front_starts_without_redis_and_joins_when_it_is_available(
    new_front: NewFront, redis_server: RedisServer
) -> None:
    redis_server.kill()
    front = await new_front(2)
    tickets = await reserve(front, front, front)
    assert running(tickets) == [True, True, False]
    redis_server.start()
    other = await new_front(2)
    await until(lambda: other.total_running == 2)
    tickets[0].release()
    await until(lambda: tickets[2].running)


@contextmanager
def front_processes(
    folder: Path, redis_server: RedisServer, number: int, *, slots: int, queue_size: int, requests: int
) -> Iterator[list[Process]]:
    """Run fronts in processes of their own, see :mod:`tests.runtime.shared_queue_front`."""
    arguments = [redis_server.url, *map(str, (slots, queue_size, requests))]
    with ExitStack() as stack:
        command = [PYTHON, "-m", "tests.runtime.shared_queue_front", *arguments]
        yield [stack.enter_context(running_process(command, folder / f"front-{n}")) for n in range(number)]


async def answered(redis: Redis, key: str, count: int) -> list[int]:
    """Return the next ``count`` elements of a list."""
    elements = [await redis.blpop([key], timeout=START_PATIENCE) for _ in range(count)]
    return [int(element[1]) for element in elements if element is not None]


async def test_three_processes_keep_the_cap_and_the_order(
    tmp_path: Path, redis_server: RedisServer, redis: Redis
) -> None:
    events: list[tuple[str, str]] = []

    async def watch() -> None:
        async with redis.monitor() as monitor:
            watching.set()
            async for entry in monitor.listen():
                command = entry["command"]
                if freed := re.search(r"freed\W+(\d+)", command):
                    events.append(("freed", freed[1]))
                elif command.startswith(("ZADD", "ZREM")):
                    events.append((command[:4], command.split(" ")[-1]))

    watching = asyncio.Event()
    watcher = asyncio.create_task(watch())
    await watching.wait()
    with front_processes(tmp_path, redis_server, 3, slots=50, queue_size=200, requests=134) as processes:
        await redis.rpush("start", 1, 1, 1)
        assert sum(await answered(redis, "decided", 3)) == 250
        await redis.rpush("run", 1, 1, 1)
        for process in processes:
            await until(lambda: process.popen.poll() is not None)  # noqa: B023 - awaited here
            assert process.popen.poll() == 0, process.output
        lines = [line.split() for process in processes for line in process.out.splitlines()]
    await until(lambda: sum(name == "ZREM" for name, _ in events) == 250)
    watcher.cancel()
    assert len(lines) == 2 * 250
    in_use = list(
        accumulate(1 if event == "begin" else -1 for event, _ in sorted(lines, key=lambda line: int(line[1])))
    )
    assert max(in_use) <= 50
    waiting: list[str] = []
    granted = most = 0
    for name, value in events:
        if name == "freed":
            granted -= int(value)
        elif name == "ZADD":
            waiting.append(value)
        else:
            assert granted + waiting.index(value) < 50, "a later ticket has the slot of an earlier one"
            waiting.remove(value)
            granted += 1
            most = max(most, granted)
    assert (waiting, most) == ([], 50)


async def test_a_killed_front_loses_its_slots_and_places(
    tmp_path: Path, redis_server: RedisServer, redis: Redis, new_front: NewFront
) -> None:
    with front_processes(tmp_path, redis_server, 1, slots=2, queue_size=5, requests=4) as [process]:
        await redis.rpush("start", 1)
        assert await answered(redis, "decided", 1) == [4]
        front = await new_front(2, 5)
        tickets = await reserve(front, front, front)
        assert [ticket.position for ticket in tickets] == [3, 4, 5]
        process.popen.kill()
        await until(lambda: running(tickets) == [True, True, False])
    assert (front.total_running, front.total_waiting, tickets[2].position) == (2, 1, 1)
    assert LEASE_SECONDS == 3


async def test_a_front_that_was_suspended_reports_its_answers_again(
    tmp_path: Path, redis_server: RedisServer, redis: Redis, new_front: NewFront
) -> None:
    with front_processes(tmp_path, redis_server, 1, slots=1, queue_size=5, requests=2) as [process]:
        await redis.rpush("start", 1)
        await answered(redis, "decided", 1)
        front = await new_front(1, 5)
        [ticket] = await reserve(front)
        process.popen.send_signal(signal.SIGSTOP)
        await until(lambda: ticket.running)
        last = await front.reserve()
        process.popen.send_signal(signal.SIGCONT)
        await until(lambda: (front.total_running, front.total_waiting) == (2, 2))
        assert last.position == 2
        ticket.release()
        await until(lambda: front.total_running == 1)
        assert not last.running
        await redis.rpush("run", 1)
        await until(lambda: last.running)
