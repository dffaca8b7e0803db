"""Slots and the queue."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, initialize, invariant, multiple, rule

from aiochatstream.errors import Draining, TooManyRequests
from aiochatstream.runtime.admission import Admission, Ticket
from tests.helpers import until

pytestmark = pytest.mark.both_loops


@pytest.mark.parametrize(("slots", "queue_size"), [(1, 0), (1, 2), (3, 0), (2, 5)])
def test_requests_beyond_the_slots_wait_and_beyond_the_queue_are_refused(slots: int, queue_size: int) -> None:
    admission = Admission(slots, queue_size)
    tickets = [admission.reserve() for _ in range(slots + queue_size)]
    assert [ticket.running for ticket in tickets] == [True] * slots + [False] * queue_size
    assert [ticket.position for ticket in tickets] == [0] * slots + list(range(1, queue_size + 1))
    with pytest.raises(TooManyRequests) as refusal:
        admission.reserve()
    assert refusal.value.retry_after == admission.retry_after() >= 1
    assert (admission.running, admission.waiting) == (slots, queue_size)


def test_a_large_request_takes_at_most_one_place_per_slot() -> None:
    admission = Admission(2, 3)
    first = admission.reserve_all(100)
    assert [ticket.running for ticket in first] == [True, True, *[False] * 98]
    assert admission.waiting == 0
    second, third = admission.reserve_all(3), admission.reserve_all(2)
    assert [ticket.position for ticket in (*second, *third)] == [1, 0, 0, 2, 3]
    with pytest.raises(TooManyRequests, match="All 2 slots and all 3 places in the queue are in use"):
        admission.reserve_all(1)


def test_large_requests_leave_half_of_the_queue_to_others() -> None:
    # a large request returns its places when all of its answers have ended, which can take hours
    admission = Admission(2, 7)
    large = [ticket for _ in range(3) for ticket in admission.reserve_all(256)]
    assert (admission.running, admission.waiting) == (2, 3)
    for _ in range(2):
        with pytest.raises(TooManyRequests, match="Other requests for many answers use all the places") as refusal:
            admission.reserve_all(256)
        assert refusal.value.retry_after
        small = [admission.reserve() for _ in range(4)]
        for ticket in small:
            ticket.release()
        next(ticket for ticket in large if ticket.running).release()


def test_other_requests_run_between_two_answers_of_a_large_request() -> None:
    admission = Admission(2, 2)
    many = admission.reserve_all(5)
    first, second = admission.reserve(), admission.reserve()
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
    first, second, third, last = admission.reserve_all(4)
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


def test_without_a_queue_the_next_request_gets_a_free_slot() -> None:
    admission = Admission(1, 0)
    admission.reserve().release()
    assert admission.reserve().running


def test_slots_are_granted_first_in_first_out() -> None:
    admission = Admission(1, 3)
    tickets = [admission.reserve() for _ in range(4)]
    for turn in range(4):
        assert [ticket.running for ticket in tickets] == [number == turn for number in range(4)]
        tickets[turn].release()
    assert (admission.running, admission.waiting) == (0, 0)


def test_a_request_that_leaves_the_queue_moves_later_ones_up() -> None:
    admission = Admission(1, 3)
    running, first, second, third = (admission.reserve() for _ in range(4))
    second.release()
    assert [first.position, third.position] == [1, 2]
    last = admission.reserve()
    assert last.position == 3
    running.release()
    assert [first.running, third.position, last.position] == [True, 1, 2]


@pytest.mark.parametrize("end", ["released", "drained"])
def test_a_ticket_that_no_longer_waits_has_no_position(end: str) -> None:
    admission = Admission(1, 1)
    admission.reserve()
    waiter = admission.reserve()
    waiter.release() if end == "released" else admission.drain()
    assert (waiter.position, waiter.running) == (0, False)


async def test_positions_yields_each_change_until_the_slot_is_granted() -> None:
    admission = Admission(1, 3)
    running, first, second, last = (admission.reserve() for _ in range(4))
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
    running, waiter = admission.reserve(), admission.reserve()
    assert [position async for position in running.positions()] == []
    positions = waiter.positions()
    assert await anext(positions) == 1
    rest = asyncio.create_task(anext(positions, None))
    await asyncio.sleep(0)
    assert not rest.done()
    waiter.release()
    assert await rest is None
    assert not waiter.running


def test_a_repeated_release_has_no_effect() -> None:
    admission = Admission(2, 1)
    first, _, waiter = (admission.reserve() for _ in range(3))
    first.release()
    first.release()
    assert (admission.running, admission.waiting, waiter.running) == (2, 0, True)
    waiting = admission.reserve()
    waiting.release()
    waiting.release()
    assert (admission.running, admission.waiting) == (2, 0)


async def test_drain_refuses_new_and_waiting_requests_but_not_running_ones() -> None:
    admission = Admission(1, 2)
    running, first, second = (admission.reserve() for _ in range(3))
    positions = first.positions()
    assert await anext(positions) == 1
    next_position = asyncio.ensure_future(anext(positions))
    admission.drain()
    for waiter in (next_position, anext(second.positions())):
        with pytest.raises(Draining) as refusal:
            await waiter
        assert refusal.value.retry_after
    with pytest.raises(Draining):
        admission.reserve()
    assert (running.running, admission.running, admission.waiting) == (True, 1, 0)
    for ticket in (first, second, running):
        ticket.release()
    assert (admission.running, admission.waiting) == (0, 0)
    with pytest.raises(Draining):
        admission.reserve()


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
def test_retry_after_follows_the_times_that_answers_held_their_slots(
    slots: int, held: list[float], waiting: int, seconds: int
) -> None:
    now = [1000.0]
    admission = Admission(slots, waiting, clock=lambda: now[0])
    for duration in held:
        ticket = admission.reserve()
        now[0] += duration
        ticket.release(answered=True)
    for _ in range(slots + waiting):
        admission.reserve()
    assert admission.retry_after() == seconds


def test_slots_without_an_answer_do_not_count_for_retry_after() -> None:
    now = [0.0]
    admission = Admission(1, 1, clock=lambda: now[0])
    running, waiter = admission.reserve(), admission.reserve()
    now[0] = 50.0
    waiter.release()
    running.release()
    running.release(answered=True)
    assert admission.retry_after() == 5  # the assumed time


def test_time_in_the_queue_does_not_count_for_retry_after() -> None:
    now = [0.0]
    admission = Admission(1, 1, clock=lambda: now[0])
    first, second = admission.reserve(), admission.reserve()
    for ticket in (first, second):
        now[0] += 8.0
        ticket.release(answered=True)
    assert admission.retry_after() == 8


class AdmissionMachine(RuleBasedStateMachine):
    """Reserve, release and drain in any order, compared with a model of lists."""

    tickets: Bundle[Ticket] = Bundle("tickets")

    @initialize(slots=st.integers(1, 3), queue_size=st.integers(0, 3))
    def start(self, slots: int, queue_size: int) -> None:
        self.admission = Admission(slots, queue_size)
        self.running: list[Ticket] = []
        self.waiting: list[Ticket] = []
        self.groups: dict[Ticket, list[Ticket]] = {}
        """Tickets of the same request without a place, by ticket."""
        self.released: list[Ticket] = []
        self.draining = False

    @rule(target=tickets, count=st.integers(1, 5))
    def reserve(self, count: int) -> MultipleResults[Ticket]:
        slots = self.admission.slots
        free = slots + self.admission.queue_size - len(self.running) - len(self.waiting)
        if self.draining or not free:
            with pytest.raises(Draining if self.draining else TooManyRequests):
                self.admission.reserve_all(count)
            return multiple()
        if count > min(slots, free):
            held = sum(bool(self.groups[ticket]) for ticket in self.running + self.waiting)
            free = min(free, slots + self.admission.queue_size // 2 - held)
            if free <= 0:
                with pytest.raises(TooManyRequests):
                    self.admission.reserve_all(count)
                return multiple()
        made = self.admission.reserve_all(count)
        following = made[min(count, slots, free) :]
        self.groups |= dict.fromkeys(made, following)
        self.waiting += made[: count - len(following)]
        self.grant()
        return multiple(*made)

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

    def grant(self) -> None:
        while self.waiting and len(self.running) < self.admission.slots:
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
        assert self.admission.running == len(self.running) <= self.admission.slots
        assert self.admission.waiting == len(self.waiting) <= self.admission.queue_size
        assert all(ticket.running for ticket in self.running)
        following = [ticket for tickets in self.groups.values() for ticket in tickets]
        assert not any(ticket.running for ticket in self.waiting + self.released + following)
        assert not any(ticket.position for ticket in self.released + following)
        assert [ticket.position for ticket in self.waiting] == list(range(1, len(self.waiting) + 1))
        assert not self.waiting or self.admission.running == self.admission.slots, "a slot is free"


AdmissionMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestAdmission = AdmissionMachine.TestCase
