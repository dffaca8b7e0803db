"""Slots and the queue."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from types import FrameType
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, initialize, invariant, multiple, rule

from aiochatstream.errors import Draining, TooManyRequests
from aiochatstream.runtime.admission import MAX_SLOTS, Admission, Ticket
from tests.helpers import until
from tests.virtual_time import run_in_virtual_time

pytestmark = pytest.mark.both_loops

Result = TypeVar("Result")


def immediate(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of a coroutine that must not wait."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("The coroutine waits.")


def lines_of(call: Callable[[], object]) -> int:
    """Return the number of lines of Python that a call executes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(("slots", "queue_size"), [(1, 0), (1, 2), (3, 0), (2, 5)])
async def test_requests_beyond_the_slots_wait_and_beyond_the_queue_are_refused(slots: int, queue_size: int) -> None:
    admission = Admission(slots, queue_size)
    tickets = [await admission.reserve() for _ in range(slots + queue_size)]
    assert [ticket.running for ticket in tickets] == [True] * slots + [False] * queue_size
    assert [ticket.position for ticket in tickets] == [0] * slots + list(range(1, queue_size + 1))
    with pytest.raises(TooManyRequests) as refusal:
        await admission.reserve()
    assert refusal.value.retry_after == admission.retry_after() >= 1
    assert (admission.running, admission.waiting) == (slots, queue_size)


async def test_a_large_request_takes_at_most_one_place_per_slot() -> None:
    admission = Admission(2, 3)
    first = await admission.reserve_all(100)
    assert [ticket.running for ticket in first] == [True, True, *[False] * 98]
    assert admission.waiting == 0
    second, third = await admission.reserve_all(3), await admission.reserve_all(2)
    assert [ticket.position for ticket in (*second, *third)] == [1, 0, 0, 2, 3]
    with pytest.raises(TooManyRequests, match="All 2 slots and all 3 places in the queue are in use"):
        await admission.reserve_all(1)


async def test_large_requests_leave_half_of_the_queue_to_others() -> None:
    # a large request returns its places when all of its answers have ended, which can take hours
    admission = Admission(2, 7)
    large = [ticket for _ in range(3) for ticket in await admission.reserve_all(256)]
    assert (admission.running, admission.waiting) == (2, 3)
    for _ in range(2):
        with pytest.raises(TooManyRequests, match="Other requests for many answers use all the places") as refusal:
            await admission.reserve_all(256)
        assert refusal.value.retry_after
        small = [await admission.reserve() for _ in range(4)]
        for ticket in small:
            ticket.release()
        next(ticket for ticket in large if ticket.running).release()


async def test_other_requests_run_between_two_answers_of_a_large_request() -> None:
    admission = Admission(2, 2)
    many = await admission.reserve_all(5)
    first, second = await admission.reserve(), await admission.reserve()
    many[0].release()
    assert (first.running, second.position, many[2].position) == (True, 1, 2)
    many[1].release()
    assert (second.running, many[2].position, many[3].position) == (True, 1, 2)
    first.release()
    second.release()
    assert [ticket.running for ticket in many] == [False, False, True, True, False]
    many[2].release()
    assert many[4].running
    assert (admission.running, admission.waiting) == (2, 0)


async def test_wait_enqueued_returns_with_a_place_a_release_or_a_drain() -> None:
    admission = Admission(1, 0)
    first, second, third, last = await admission.reserve_all(4)
    waiting = [asyncio.create_task(ticket.wait_enqueued()) for ticket in (second, third, last)]
    await first.wait_enqueued()
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    third.release()
    await waiting[1]
    first.release()
    await waiting[0]
    assert second.running
    admission.drain()
    await waiting[2]
    with pytest.raises(Draining):
        await anext(last.positions())
    second.release()
    assert (admission.running, admission.waiting) == (0, 0)


async def test_without_a_queue_the_next_request_gets_a_free_slot() -> None:
    admission = Admission(1, 0)
    (await admission.reserve()).release()
    assert (await admission.reserve()).running


async def test_slots_are_granted_first_in_first_out() -> None:
    admission = Admission(1, 3)
    tickets = [await admission.reserve() for _ in range(4)]
    for turn in range(4):
        assert [ticket.running for ticket in tickets] == [number == turn for number in range(4)]
        tickets[turn].release()
    assert (admission.running, admission.waiting) == (0, 0)


async def test_a_request_that_leaves_the_queue_moves_later_ones_up() -> None:
    admission = Admission(1, 3)
    running, first, second, third = [await admission.reserve() for _ in range(4)]
    second.release()
    assert [first.position, third.position] == [1, 2]
    last = await admission.reserve()
    assert last.position == 3
    running.release()
    assert [first.running, third.position, last.position] == [True, 1, 2]


@pytest.mark.parametrize("end", ["released", "drained"])
async def test_a_ticket_that_no_longer_waits_has_no_position(end: str) -> None:
    admission = Admission(1, 1)
    await admission.reserve()
    waiter = await admission.reserve()
    waiter.release() if end == "released" else admission.drain()
    assert (waiter.position, waiter.running) == (0, False)


async def test_positions_yields_each_change_until_the_slot_is_granted() -> None:
    admission = Admission(1, 3)
    running, first, second, last = [await admission.reserve() for _ in range(4)]
    positions: list[int] = []

    async def listen() -> None:
        async for position in last.positions():
            positions.append(position)

    listener = asyncio.create_task(listen())
    for count, ticket in enumerate((second, running, first), 1):
        await until(lambda: len(positions) == count)  # noqa: B023 - awaited here
        assert not listener.done()
        ticket.release()
    await listener
    assert positions == [3, 2, 1]
    assert last.running


async def test_positions_is_empty_for_a_running_ticket_and_ends_at_its_release() -> None:
    admission = Admission(1, 1)
    running, waiter = await admission.reserve(), await admission.reserve()
    assert [position async for position in running.positions()] == []
    positions = waiter.positions()
    assert await anext(positions) == 1
    rest = asyncio.create_task(anext(positions, None))
    await asyncio.sleep(0)
    assert not rest.done()
    waiter.release()
    assert await rest is None
    assert not waiter.running


async def test_a_repeated_release_has_no_effect() -> None:
    admission = Admission(2, 1)
    first, _, waiter = [await admission.reserve() for _ in range(3)]
    first.release()
    first.release()
    assert (admission.running, admission.waiting, waiter.running) == (2, 0, True)
    waiting = await admission.reserve()
    waiting.release()
    waiting.release()
    assert (admission.running, admission.waiting) == (2, 0)


async def test_drain_refuses_new_and_waiting_requests_but_not_running_ones() -> None:
    admission = Admission(1, 2)
    running, first, second = [await admission.reserve() for _ in range(3)]
    positions = first.positions()
    assert await anext(positions) == 1
    next_position = asyncio.ensure_future(anext(positions))
    admission.drain()
    for waiter in (next_position, anext(second.positions())):
        with pytest.raises(Draining) as refusal:
            await waiter
        assert refusal.value.retry_after
    with pytest.raises(Draining):
        await admission.reserve()
    assert (running.running, admission.running, admission.waiting) == (True, 1, 0)
    for ticket in (first, second, running):
        ticket.release()
    assert (admission.running, admission.waiting) == (0, 0)
    with pytest.raises(Draining):
        await admission.reserve()


@pytest.mark.parametrize(
    ("slots", "held", "waiting", "seconds"),
    [
        (1, [], 0, 5),  # the assumed time
        (2, [], 0, 3),
        (1, [10.0], 0, 10),
        (1, [10.0], 2, 30),
        (4, [10.0], 1, 5),
        (1, [10.0, 20.0], 0, 12),  # the newest has a weight of a fifth
        (1, [10.0, 20.0, 2.0], 0, 10),
        (1, [0.001], 0, 1),  # at least 1 s
        (1, [400.0], 1, 600),  # at most 10 minutes
    ],
)
async def test_retry_after_follows_the_times_that_answers_held_their_slots(
    slots: int, held: list[float], waiting: int, seconds: int
) -> None:
    now = [1000.0]
    admission = Admission(slots, waiting, clock=lambda: now[0])
    for duration in held:
        ticket = await admission.reserve()
        now[0] += duration
        ticket.release(answered=True)
    for _ in range(slots + waiting):
        await admission.reserve()
    assert admission.retry_after() == seconds


async def test_slots_without_an_answer_do_not_count_for_retry_after() -> None:
    now = [0.0]
    admission = Admission(1, 1, clock=lambda: now[0])
    running, waiter = await admission.reserve(), await admission.reserve()
    now[0] = 50.0
    waiter.release()
    running.release()
    running.release(answered=True)
    assert admission.retry_after() == 5  # the assumed time


async def test_time_in_the_queue_does_not_count_for_retry_after() -> None:
    now = [0.0]
    admission = Admission(1, 1, clock=lambda: now[0])
    first, second = await admission.reserve(), await admission.reserve()
    for ticket in (first, second):
        now[0] += 8.0
        ticket.release(answered=True)
    assert admission.retry_after() == 8


async def test_more_slots_are_granted_immediately_and_fewer_when_answers_end() -> None:
    admission = Admission(2, 4)
    tickets = [await admission.reserve() for _ in range(6)]
    admission.resize(4)
    assert [ticket.position for ticket in tickets] == [0, 0, 0, 0, 1, 2]
    admission.resize(1)
    assert [ticket.running for ticket in tickets] == [True] * 4 + [False] * 2
    for count, ticket in enumerate(tickets[:3], 1):
        ticket.release()
        assert (admission.running, tickets[4].position, tickets[5].position) == (4 - count, 1, 2)
    tickets[3].release()
    assert (tickets[4].running, tickets[5].position) == (True, 1)


async def test_without_slots_tickets_keep_their_places_until_there_are_slots_again() -> None:
    admission = Admission(2, 3)
    running = [await admission.reserve() for _ in range(2)]
    admission.resize(0)
    first, second, third = [await admission.reserve() for _ in range(3)]
    with pytest.raises(TooManyRequests, match="All 0 slots and all 3 places in the queue are in use"):
        await admission.reserve()
    for ticket in running:
        ticket.release()
    second.release()
    many = await admission.reserve_all(2)  # one place, as with one slot
    assert [ticket.position for ticket in (first, second, third, *many)] == [1, 0, 2, 3, 0]
    admission.resize(2)
    assert [ticket.running for ticket in (first, third)] == [True, True]
    first.release()
    third.release()
    assert many[0].running
    many[0].release()
    assert many[1].running


async def test_fewer_slots_than_answers_refuse_only_what_the_queue_cannot_hold() -> None:
    admission = Admission(5, 2)
    for _ in range(5):
        await admission.reserve()
    admission.resize(1)
    assert [(await admission.reserve()).position for _ in range(2)] == [1, 2]
    with pytest.raises(TooManyRequests):
        admission.check_room()


def test_an_admission_can_start_without_slots() -> None:
    admission = Admission(0, 1)
    ticket = immediate(admission.reserve())
    assert ticket.position == 1
    admission.resize(1)
    assert ticket.running


@pytest.mark.parametrize("slots", [-1, MAX_SLOTS + 1])
def test_a_number_of_slots_out_of_range_is_refused(slots: int) -> None:
    admission = Admission(3, 0)
    with pytest.raises(ValueError, match=rf"^slots: must be a whole number from 0 to 100000, not {slots}\.$"):
        admission.resize(slots)
    assert admission.slots == 3


def test_without_slots_retry_after_is_an_estimate_for_the_slots_before() -> None:
    admission = Admission(4, 10)
    for _ in range(11):
        immediate(admission.reserve())
    assert admission.retry_after() == 10  # 8 answers of 5 s each, 4 at a time
    admission.resize(0)
    assert admission.retry_after() == 10
    admission.resize(2)
    assert admission.retry_after() == 20
    assert Admission(0, 0).retry_after() == 5


def test_the_steps_of_a_release_do_not_grow_with_the_queue() -> None:
    def most_lines(waiting: int) -> int:
        admission = Admission(8, waiting)
        tickets = [immediate(admission.reserve()) for _ in range(8 + waiting)]
        half = waiting // 2
        leaving = [*tickets[:8], *tickets[half : half + 4], *tickets[-4:]]  # slots, the middle and the end
        return max(lines_of(lambda ticket=ticket: ticket.release()) for ticket in leaving)  # type: ignore[misc]

    short, long = most_lines(10), most_lines(10_000)
    # of the Fenwick tree: three lines for each doubling, when leaving and for each of the first three positions
    assert long <= short + 4 * 3 * 10, (short, long)


def test_positions_are_yielded_twice_a_second_and_the_first_three_immediately() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        admission = Admission(1, 20)
        tickets = [await admission.reserve() for _ in range(21)]
        yielded: list[tuple[float, int]] = []

        async def listen() -> None:
            async with aclosing(tickets[-1].positions()) as positions:
                async for position in positions:
                    yielded.append((round(loop.time(), 3), position))

        listening = asyncio.create_task(listen())
        for ticket in tickets[:-1]:
            await asyncio.sleep(0.1)
            ticket.release()
        await listening
        assert yielded[0] == (0, 20), "the first position is late"
        assert yielded[-3:] == [(1.7, 3), (1.8, 2), (1.9, 1)]
        assert [position for _, position in yielded] == sorted({position for _, position in yielded}, reverse=True)
        times = [at for at, _ in yielded[:-3]]
        assert times == [0, 0.5, 1.0, 1.5]

    run_in_virtual_time(main())


@pytest.mark.parametrize("waiting", [10, 10_000])
def test_a_release_wakes_three_listeners_and_a_second_wakes_a_thousand(waiting: int) -> None:
    async def main() -> None:
        admission = Admission(4, waiting)
        tickets = [await admission.reserve() for _ in range(4 + waiting)]
        yielded: Counter[Ticket] = Counter()

        async def listen(ticket: Ticket) -> None:
            async with aclosing(ticket.positions()) as positions:
                async for _ in positions:
                    yielded[ticket] += 1

        listening = [asyncio.create_task(listen(ticket)) for ticket in tickets]
        await asyncio.sleep(0)
        assert sum(yielded.values()) == waiting
        for ticket in tickets[:4]:
            yielded.clear()
            ticket.release()
            await asyncio.sleep(0)
            assert sum(yielded.values()) == 3
        yielded.clear()
        await asyncio.sleep(1.04)  # in which nobody moves: each listener receives the latest position once
        assert sum(yielded.values()) == min(waiting - 4 - 3, 11 * 50)
        assert max(yielded.values()) == 1
        admission.drain()
        for result in await asyncio.gather(*listening, return_exceptions=True):
            assert result is None or isinstance(result, Draining)

    run_in_virtual_time(main())


async def test_closing_the_positions_ends_the_reports_of_a_ticket() -> None:
    admission = Admission(1, 2)
    _, waiter = await admission.reserve(), await admission.reserve()
    positions = waiter.positions()
    assert await anext(positions) == 1
    await positions.aclose()
    assert len(admission._reports) == 0


class AdmissionMachine(RuleBasedStateMachine):
    """Reserve, release, resize and drain in any order, compared with a model of lists."""

    tickets: Bundle[Ticket] = Bundle("tickets")

    @initialize(slots=st.integers(0, 3), queue_size=st.integers(0, 3))
    def start(self, slots: int, queue_size: int) -> None:
        self.admission = Admission(slots, queue_size)
        self.slots = slots
        self.running: list[Ticket] = []
        self.waiting: list[Ticket] = []
        self.groups: dict[Ticket, list[Ticket]] = {}
        """Tickets of the same request without a place, by ticket."""
        self.released: list[Ticket] = []
        self.draining = False

    @rule(target=tickets, count=st.integers(1, 5))
    def reserve(self, count: int) -> MultipleResults[Ticket]:
        free = max(0, self.slots - len(self.running)) + self.admission.queue_size - len(self.waiting)
        if self.draining or free <= 0:
            with pytest.raises(Draining if self.draining else TooManyRequests):
                immediate(self.admission.reserve_all(count))
            return multiple()
        places = min(count, max(1, self.slots), free)
        if places < count:
            places = min(places, self.slots + self.admission.queue_size // 2 - self.places_of_large_requests)
            if places <= 0:
                with pytest.raises(TooManyRequests, match="Other requests for many answers"):
                    immediate(self.admission.reserve_all(count))
                return multiple()
        made = immediate(self.admission.reserve_all(count))
        following = made[places:]
        self.groups |= dict.fromkeys(made, following)
        self.waiting += made[:places]
        self.grant()
        return multiple(*made)

    @property
    def places_of_large_requests(self) -> int:
        return sum(bool(self.groups[ticket]) for ticket in self.running + self.waiting)

    @rule(ticket=tickets)
    def release(self, ticket: Ticket) -> None:
        ticket.release()
        following = self.groups[ticket]
        for tickets in (self.running, self.waiting, following):
            with suppress(ValueError):
                tickets.remove(ticket)
                self.released.append(ticket)
                if tickets is not following and following:
                    self.waiting.append(following.pop(0))
                break
        self.grant()

    @rule(slots=st.integers(0, 5))
    def resize(self, slots: int) -> None:
        self.admission.resize(slots)
        self.slots = slots
        self.grant()

    def grant(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            self.running.append(self.waiting.pop(0))

    @rule(number=st.integers(0, 9))
    def drain(self, number: int) -> None:
        if number == 0:  # seldom: little can happen afterwards
            self.admission.drain()
            self.draining = True
            for tickets in (self.waiting, *self.groups.values()):
                self.released += tickets
                tickets.clear()

    @invariant()
    def matches_the_model(self) -> None:
        assert self.admission.running == len(self.running)
        assert self.admission.waiting == len(self.waiting)
        assert all(ticket.running for ticket in self.running)
        following = [ticket for tickets in self.groups.values() for ticket in tickets]
        assert not any(ticket.running for ticket in self.waiting + self.released + following)
        assert not any(ticket.position for ticket in self.running + self.released + following)
        assert [ticket.position for ticket in self.waiting] == list(range(1, len(self.waiting) + 1))
        assert self.admission._large == self.places_of_large_requests


AdmissionMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestAdmission = AdmissionMachine.TestCase
