"""Slots and the queue for them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from aiochatstream.admission import Admission, Ticket
from aiochatstream.errors import Draining, TooManyRequests
from tests.helpers import until


@pytest.mark.parametrize(("slots", "queue_size"), [(1, 0), (1, 2), (3, 0), (2, 5)])
def test_exactly_n_run_exactly_q_wait_and_one_more_is_refused_at_once(slots: int, queue_size: int) -> None:
    admission = Admission(slots, queue_size)
    tickets = [admission.reserve() for _ in range(slots + queue_size)]
    assert [ticket.running for ticket in tickets] == [True] * slots + [False] * queue_size
    assert [ticket.position for ticket in tickets] == [0] * slots + list(range(1, queue_size + 1))
    with pytest.raises(TooManyRequests) as refusal:
        admission.reserve()
    assert refusal.value.retry_after == admission.retry_after() >= 1
    assert (admission.running, admission.waiting) == (slots, queue_size)


def test_several_places_are_taken_all_or_none() -> None:
    admission = Admission(2, 2)
    first = admission.reserve_all(3)
    assert [ticket.position for ticket in first] == [0, 0, 1]
    with pytest.raises(TooManyRequests, match="taken but 1, and 2 are asked for"):
        admission.reserve_all(2)
    assert (admission.running, admission.waiting) == (2, 1)
    assert admission.reserve_all(1)[0].position == 2


def test_without_a_queue_a_freed_slot_goes_to_the_next_who_comes() -> None:
    admission = Admission(1, 0)
    admission.reserve().release()
    assert admission.reserve().running


def test_a_freed_slot_goes_to_the_one_who_has_waited_longest() -> None:
    admission = Admission(1, 3)
    tickets = [admission.reserve() for _ in range(4)]
    for turn in range(4):
        assert [ticket.running for ticket in tickets] == [number == turn for number in range(4)]
        tickets[turn].release()
    assert (admission.running, admission.waiting) == (0, 0)


def test_a_waiter_that_leaves_makes_room_and_those_behind_it_move_up() -> None:
    admission = Admission(1, 3)
    running, first, second, third = (admission.reserve() for _ in range(4))
    second.release()
    assert [first.position, third.position] == [1, 2]
    last = admission.reserve()
    assert last.position == 3
    running.release()
    assert [first.running, third.position, last.position] == [True, 1, 2]


@pytest.mark.parametrize("end", ["released", "drained"])
def test_who_waits_no_longer_has_no_place_in_the_queue(end: str) -> None:
    admission = Admission(1, 1)
    admission.reserve()
    waiter = admission.reserve()
    waiter.release() if end == "released" else admission.drain()
    assert (waiter.position, waiter.running) == (0, False)


async def test_positions_yields_each_change_and_ends_when_the_slot_is_granted() -> None:
    admission = Admission(1, 3)
    running, first, second, last = (admission.reserve() for _ in range(4))
    told: list[int] = []

    async def listen() -> None:
        async for position in last.positions():
            told.append(position)

    listener = asyncio.create_task(listen())
    for seen, leaves in ((3, second), (2, running), (1, first)):
        await until(lambda seen=seen: told[-1:] == [seen])
        assert not listener.done()
        leaves.release()
    await listener
    assert told == [3, 2, 1]
    assert last.running


async def test_positions_of_one_who_runs_or_has_left_are_none() -> None:
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


def test_releasing_again_changes_nothing() -> None:
    admission = Admission(2, 1)
    first, _, waiter = (admission.reserve() for _ in range(3))
    first.release()
    first.release()
    assert (admission.running, admission.waiting, waiter.running) == (2, 0, True)
    waiting = admission.reserve()
    waiting.release()
    waiting.release()
    assert (admission.running, admission.waiting) == (2, 0)


async def test_drain_refuses_newcomers_sends_waiters_away_and_lets_runners_finish() -> None:
    admission = Admission(1, 2)
    running, first, second = (admission.reserve() for _ in range(3))
    positions = first.positions()
    assert await anext(positions) == 1
    told = asyncio.create_task(anext(positions))
    admission.drain()
    for waiter in (told, anext(second.positions())):
        with pytest.raises(Draining) as refusal:
            await waiter
        assert refusal.value.retry_after >= 1
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
        (1, [], 0, 5),  # nothing is known yet
        (2, [], 0, 3),
        (1, [10.0], 0, 10),
        (1, [10.0], 2, 30),
        (4, [10.0], 1, 5),
        (1, [10.0, 20.0], 0, 12),  # the newest counts a fifth
        (1, [10.0, 20.0, 2.0], 0, 10),
        (1, [0.001], 0, 1),  # never below a second
        (1, [400.0], 1, 600),  # never above ten minutes
    ],
)
def test_retry_after_comes_from_how_long_answers_held_their_slots(
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


def test_who_leaves_without_an_answer_teaches_nothing_about_how_long_one_takes() -> None:
    now = [0.0]
    admission = Admission(1, 1, clock=lambda: now[0])
    gone, waiter = admission.reserve(), admission.reserve()
    now[0] = 50.0
    waiter.release()
    gone.release()
    gone.release(answered=True)
    assert admission.retry_after() == 5  # as assumed


def test_time_in_the_queue_does_not_count_as_time_in_a_slot() -> None:
    now = [0.0]
    admission = Admission(1, 1, clock=lambda: now[0])
    first, second = admission.reserve(), admission.reserve()
    for ticket in (first, second):
        now[0] += 8.0
        ticket.release(answered=True)
    assert admission.retry_after() == 8


class AdmissionMachine(RuleBasedStateMachine):
    """Any order of coming, leaving and draining, against two lists."""

    tickets: Bundle[Ticket] = Bundle("tickets")

    @initialize(slots=st.integers(1, 3), queue_size=st.integers(0, 3))
    def start(self, slots: int, queue_size: int) -> None:
        self.admission = Admission(slots, queue_size)
        self.running: list[Ticket] = []
        self.waiting: list[Ticket] = []
        self.gone: list[Ticket] = []
        self.draining = False

    @rule(target=tickets)
    def reserve(self) -> Any:
        full = len(self.running) == self.admission.slots and len(self.waiting) == self.admission.queue_size
        if self.draining or full:
            with pytest.raises(Draining if self.draining else TooManyRequests):
                self.admission.reserve()
            return multiple()
        ticket = self.admission.reserve()
        (self.running if len(self.running) < self.admission.slots else self.waiting).append(ticket)
        return ticket

    @rule(ticket=tickets)
    def release(self, ticket: Ticket) -> None:
        ticket.release()
        for those in (self.running, self.waiting):
            with suppress(ValueError):
                those.remove(ticket)
                self.gone.append(ticket)
        while self.waiting and len(self.running) < self.admission.slots:
            self.running.append(self.waiting.pop(0))

    @rule(really=st.integers(0, 9))
    def drain(self, really: int) -> None:
        if really == 0:  # seldom, as little happens afterwards
            self.admission.drain()
            self.draining = True
            self.gone += self.waiting
            self.waiting = []

    @invariant()
    def is_as_the_lists_say(self) -> None:
        assert self.admission.running == len(self.running) <= self.admission.slots
        assert self.admission.waiting == len(self.waiting) <= self.admission.queue_size
        assert all(ticket.running for ticket in self.running)
        assert not any(ticket.running for ticket in self.waiting + self.gone)
        assert [ticket.position for ticket in self.waiting] == list(range(1, len(self.waiting) + 1))
        assert not self.waiting or self.admission.running == self.admission.slots, "one waits beside a free slot"


AdmissionMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestAdmissionKeepsItsPromisesInAnyOrder = AdmissionMachine.TestCase
