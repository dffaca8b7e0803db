"""Slots and the engine's memory: tickets that have a slot wait for tokens, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from aiochatstream.errors import Draining, TooManyRequests
from aiochatstream.runtime.admission import Admission, Ticket
from tests.helpers import until
from tests.runtime.test_admission import AdmissionMachine, immediate, lines_of

pytestmark = pytest.mark.both_loops


def admission_of(
    slots: int, queue_size: int, budget: int | None, clock: Callable[[], float] = time.monotonic
) -> Admission:
    admission = Admission(slots, queue_size, clock=clock)
    admission.limit_tokens(budget)
    return admission


def claimed(admission: Admission, *claims: int) -> list[Ticket]:
    """Reserve a ticket for each claim, and return them."""
    tickets = []
    for tokens in claims:
        tickets.append(immediate(admission.reserve()))
        tickets[-1].claim(tokens)
    return tickets


async def test_tickets_run_while_their_tokens_fit_and_a_small_one_never_overtakes() -> None:
    admission = admission_of(5, 1, 100)
    large, larger, small, smaller, smallest = claimed(admission, 60, 50, 40, 30, 1)
    assert [ticket.running for ticket in (large, larger, small, smaller, smallest)] == [True, *[False] * 4]
    assert [ticket.position for ticket in (large, larger, small, smaller, smallest)] == [0, 1, 2, 3, 4]
    large.release()
    assert [ticket.running for ticket in (larger, small, smaller, smallest)] == [True, True, False, False]
    assert (smaller.position, smallest.position) == (1, 2)
    small.release()
    assert smaller.running
    assert smallest.running
    assert (admission.running, admission.waiting, admission.waiting_for_memory) == (3, 0, 0)


async def test_a_ticket_that_waits_for_memory_precedes_those_that_wait_for_a_slot() -> None:
    admission = admission_of(2, 2, 10)
    running, for_memory, first, second = claimed(admission, 10, 1, 1, 1)
    assert [ticket.position for ticket in (running, for_memory, first, second)] == [0, 1, 2, 3]
    assert (admission.running, admission.waiting, admission.waiting_for_memory) == (1, 3, 1)
    with pytest.raises(TooManyRequests, match="All 2 slots and all 2 places in the queue are in use"):
        await admission.reserve()
    for_memory.release()  # its slot is for the next one, which waits for memory then
    assert (first.position, second.position, admission.waiting_for_memory) == (1, 2, 1)
    running.release()
    assert first.running
    assert second.running


async def test_tickets_that_wait_for_memory_leave_the_places_of_the_queue_to_others() -> None:
    admission = admission_of(3, 0, 10)
    claimed(admission, 10, 10)
    assert (await admission.reserve()).running  # it has a slot, and no claim yet
    with pytest.raises(TooManyRequests):
        admission.check_room()


async def test_tickets_wait_for_memory_in_the_order_of_their_claims() -> None:
    admission = admission_of(4, 0, 10)
    running, long_prompt, short_prompt = [await admission.reserve() for _ in range(3)]
    running.claim(10)
    short_prompt.claim(3)
    long_prompt.claim(9)
    assert (short_prompt.position, long_prompt.position) == (1, 2)
    running.release()
    assert (short_prompt.running, long_prompt.running) == (True, False)


async def test_a_claim_in_the_queue_counts_from_the_slot() -> None:
    admission = admission_of(1, 2, 10)
    running, waiting, last = claimed(admission, 4, 10, 10)
    assert admission.waiting_for_memory == 0
    running.release()
    assert (waiting.running, last.position) == (True, 1)


async def test_a_ticket_that_leaves_while_it_waits_frees_what_it_held() -> None:
    admission = admission_of(3, 1, 10)
    running, leaving, small, for_slot = claimed(admission, 8, 8, 2, 2)
    leaving.release()
    leaving.release()
    assert (small.running, for_slot.position) == (True, 1)
    running.release()
    assert for_slot.running
    small.release()
    for_slot.release()
    assert (admission.running, admission.waiting) == (0, 0)
    assert all(ticket.running for ticket in claimed(admission, 5, 5))


async def test_positions_yields_each_change_until_the_memory_is_granted() -> None:
    admission = admission_of(2, 2, 10)
    first, second, last = claimed(admission, 10, 10, 10)
    positions: list[int] = []

    async def listen() -> None:
        async for position in last.positions():
            positions.append(position)

    listener = asyncio.create_task(listen())
    await until(lambda: positions == [2])
    late = await admission.reserve()
    late.claim(1)
    first.release()  # the second one runs, and the last one waits for memory
    await until(lambda: positions == [2, 1])
    assert (last.running, late.position) == (False, 2)
    assert not listener.done()
    second.release()
    await listener
    assert last.running
    assert not late.running


async def test_the_tickets_of_a_request_claim_one_after_another_and_all_of_them_run() -> None:
    admission = admission_of(3, 2, 10)
    tickets = await admission.reserve_all(7)
    for ticket in tickets:
        ticket.claim(6)
    order = []
    while admission.running:
        [running] = [ticket for ticket in tickets if ticket.running]
        order.append(tickets.index(running))
        running.release()
    assert order == list(range(7))
    assert admission.waiting == 0


async def test_two_requests_for_several_answers_share_the_memory() -> None:
    admission = admission_of(2, 2, 10)
    first, second = await admission.reserve_all(3), await admission.reserve_all(3)
    for early, late in zip(first, second, strict=True):
        late.claim(10)
        early.claim(10)
    order = []
    while admission.running:
        [running] = [ticket for ticket in (*first, *second) if ticket.running]
        order.append(running.number)
        running.release()
    assert sorted(order) == [ticket.number for ticket in (*first, *second)]
    assert (admission.running, admission.waiting) == (0, 0)


async def test_drain_refuses_the_tickets_that_wait_for_memory() -> None:
    admission = admission_of(3, 1, 10)
    running, large, small, for_slot = claimed(admission, 5, 10, 1, 1)
    positions = large.positions()
    assert await anext(positions) == 1
    admission.drain()
    for waiter in (anext(positions), anext(small.positions()), anext(for_slot.positions())):
        with pytest.raises(Draining):
            await waiter
    assert (running.running, admission.running, admission.waiting) == (True, 1, 0)
    running.release()
    assert admission.running == 0


async def test_a_claim_after_a_drain_is_refused() -> None:
    admission = admission_of(2, 0, 10)
    answering, preparing = await admission.reserve(), await admission.reserve()
    answering.claim(1)
    admission.drain()
    with pytest.raises(Draining):
        preparing.claim(1)
    assert answering.running


async def test_a_claim_above_the_budget_is_an_error_and_changes_nothing() -> None:
    admission = admission_of(1, 0, 10)
    ticket = await admission.reserve()
    with pytest.raises(ValueError, match=r"^tokens: must be at most 10, not 11\.$"):
        ticket.claim(11)
    assert ticket.running
    ticket.release()
    [whole] = claimed(admission, 10)
    assert whole.running


async def test_a_claim_of_a_released_ticket_has_no_effect() -> None:
    admission = admission_of(1, 0, 10)
    ticket = await admission.reserve()
    ticket.release()
    ticket.claim(11)
    [whole] = claimed(admission, 10)
    assert whole.running


async def test_without_a_budget_claims_have_no_effect() -> None:
    admission = admission_of(2, 1, None)
    first, second, third = claimed(admission, 10**9, 10**9, 10**9)
    assert (first.running, second.running, third.position) == (True, True, 1)
    admission.drain()
    first.claim(1)


async def test_fewer_slots_keep_the_places_of_tickets_that_wait_for_memory() -> None:
    admission = admission_of(3, 1, 10)
    running, first, second, for_slot = claimed(admission, 10, 5, 5, 1)
    admission.resize(1)
    assert [ticket.position for ticket in (first, second, for_slot)] == [1, 2, 3]
    running.release()
    assert (first.running, second.running, for_slot.position) == (True, True, 1)
    first.release()
    assert not for_slot.running
    second.release()
    assert for_slot.running


async def test_time_without_memory_counts_for_retry_after() -> None:
    now = [0.0]
    admission = admission_of(2, 1, 10, clock=lambda: now[0])
    first, second = claimed(admission, 10, 10)
    for ticket in (first, second):
        now[0] += 8.0
        ticket.release(answered=True)
    # held for 8 and 16 s, of which the newest has a weight of a fifth, in two slots
    assert admission.retry_after() == 5
    claimed(admission, 10, 10)
    assert admission.retry_after() == 5  # nobody waits for a slot
    claimed(admission, 10)
    assert admission.retry_after() == 10


def test_the_steps_of_a_release_do_not_grow_with_the_number_that_waits_for_memory() -> None:
    def most_lines(waiting: int) -> int:
        admission = admission_of(waiting // 2, waiting, 8)
        tickets = claimed(admission, *[1] * 8, *[8] * (waiting - 8))
        half = waiting // 2
        leaving = [*tickets[half - 4 : half + 4], *tickets[-4:], *tickets[:8]]
        return max(lines_of(lambda ticket=ticket: ticket.release()) for ticket in leaving)  # type: ignore[misc]

    short, long = most_lines(40), most_lines(10_000)
    # of the Fenwick trees, see the test without memory; two of them
    assert long <= short + 2 * 4 * 3 * 8, (short, long)


class MemoryMachine(AdmissionMachine):
    """The same with claims in any order, compared with lists: those with a slot are ``running`` or also wait."""

    @initialize(slots=st.integers(0, 4), queue_size=st.integers(0, 3), budget=st.integers(1, 10))
    def start(self, slots: int, queue_size: int, budget: int = 10) -> None:
        super().start(slots, queue_size)
        self.admission.limit_tokens(budget)
        self.budget = budget
        self.claims: dict[Ticket, int] = {}
        self.for_memory: list[Ticket] = []

    @rule(ticket=AdmissionMachine.tickets, tokens=st.integers(1, 11))
    def claim(self, ticket: Ticket, tokens: int) -> None:
        if ticket in self.claims:
            return
        if ticket in self.released:
            ticket.claim(tokens)
        elif self.draining or tokens > self.budget:
            with pytest.raises(Draining if self.draining else ValueError):
                ticket.claim(tokens)
        else:
            ticket.claim(tokens)
            self.claims[ticket] = tokens
            if ticket in self.running:
                self.for_memory.append(ticket)
            self.grant()

    @rule(ticket=AdmissionMachine.tickets)
    def release(self, ticket: Ticket) -> None:
        with suppress(ValueError):
            self.for_memory.remove(ticket)
        super().release(ticket)

    def grant(self) -> None:
        without_slot = [*self.waiting]
        super().grant()
        self.for_memory += [ticket for ticket in without_slot if ticket in self.running and ticket in self.claims]
        while self.for_memory and self.used + self.claims[self.for_memory[0]] <= self.budget:
            del self.for_memory[0]

    @property
    def used(self) -> int:
        return sum(self.claims.get(ticket, 0) for ticket in self.running if ticket not in self.for_memory)

    @rule(number=st.integers(0, 9))
    def drain(self, number: int) -> None:
        super().drain(number)
        if self.draining:
            self.released += self.for_memory
            self.running = [ticket for ticket in self.running if ticket not in self.for_memory]
            self.for_memory.clear()

    @invariant()
    def matches_the_model(self) -> None:
        running = [ticket for ticket in self.running if ticket not in self.for_memory]
        queue = [*self.for_memory, *self.waiting]
        assert {ticket for ticket in self.groups if ticket.running} == {*running}
        assert sum(self.claims.get(ticket, 0) for ticket in self.groups if ticket.running) <= self.budget
        assert [ticket.position for ticket in queue] == list(range(1, len(queue) + 1))
        assert sum(bool(ticket.position) for ticket in self.groups) == len(queue)
        assert self.admission.waiting_for_memory == len(self.for_memory)
        assert (self.admission.running, self.admission.waiting) == (len(running), len(queue))

    def teardown(self) -> None:
        """Release all tickets; then nothing is left."""
        for ticket in self.groups:
            ticket.release()
        assert (self.admission.running, self.admission.waiting, self.admission._large) == (0, 0, 0)
        assert (self.admission._memory._used, self.admission._memory._tokens) == (0, {})


MemoryMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestMemory = MemoryMachine.TestCase
