"""Admission control: slots, the engine's memory, and a bounded first-in-first-out queue.

All calls are made on the event loop; none blocks or needs a lock.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field

from aiochatstream.errors import Draining, TooManyRequests
from aiochatstream.runtime.holding_time import HoldingTime
from aiochatstream.runtime.rotation import Rotation
from aiochatstream.runtime.token_budget import TokenBudget
from aiochatstream.runtime.waiting_line import WaitingLine

MAX_SLOTS = 100_000

FIRST_POSITIONS = 3
"""Positions in the queue that are reported immediately when they change."""


@dataclass(eq=False)
class TicketGroup:
    """The tickets of a request.

    followers: tickets without a place. The first one enters the queue when a ticket of the group is released.
    places: number of slots and places in the queue that the group holds.
    counted: number of these among :attr:`Admission.large`.
    """

    followers: deque[Ticket] = field(default_factory=deque)
    places: int = 0
    counted: int = 0


class Ticket:
    """A slot, or a place in the queue. Created by :meth:`Admission.reserve`; :meth:`release` frees it.

    After :meth:`claim`, it runs when it has a slot and memory.

    number: ascending number among the tickets of an Admission; those of a request are consecutive.
    """

    def __init__(self, admission: Admission, group: TicketGroup, number: int) -> None:
        self.number = number
        self._admission, self._group = admission, group
        self._enqueued = False
        self._tokens: int | None = None
        """Tokens that :meth:`claim` has claimed."""
        self._changed = asyncio.Event()
        self._refusal: Draining | None = None
        self._granted_at: float | None = None
        self._released = False
        self._reported = 0
        """Position that :meth:`positions` yielded last."""

    def __repr__(self) -> str:
        state = "released" if self._released else "running" if self.running else f"waiting at {self.position}"
        return f"<Ticket {state}>"

    @property
    def running(self) -> bool:
        """True while this ticket holds a slot, and the memory that it has claimed."""
        return self in self._admission._running

    @property
    def position(self) -> int:
        """Position in the queue: 1 is next, 0 is not waiting."""
        return self._admission._position(self)

    async def wait_enqueued(self) -> None:
        """Wait until this ticket has a place or a slot, or is released: other tickets of its request are first."""
        while not self._enqueued and not self._released:
            self._changed.clear()
            await self._changed.wait()

    async def positions(self) -> AsyncGenerator[int, None]:
        """Yield the position in the queue, until the ticket runs or is released: the first one, positions up to
        :data:`FIRST_POSITIONS` immediately when they change, and others at most twice a second.

        Raise :class:`~aiochatstream.errors.Draining` if the queue is drained.
        """
        try:
            while not self.running:
                if self._refusal is not None:
                    raise self._refusal
                if self._released:
                    return
                self._changed.clear()
                if self.position != self._reported:
                    self._reported = self.position
                    self._admission._reports.restart(self)
                    yield self._reported
                await self._changed.wait()
        finally:
            self._admission._reports.discard(self)

    def _report(self) -> None:
        """Have :meth:`positions` yield the position if it has changed."""
        if self.position != self._reported:
            self._changed.set()

    def claim(self, tokens: int) -> None:
        """Claim memory until the release. Called at most once, when the prompt is known.

        The ticket waits if ``tokens`` do not fit beside those of the running tickets, or earlier ones wait for memory.
        Without a budget of tokens, the call has no effect. Otherwise, raise ValueError if ``tokens`` exceed the budget,
        and :class:`~aiochatstream.errors.Draining` after :meth:`Admission.drain`.
        """
        if not self._released:
            self._admission._claim(self, tokens)

    def release(self, *, answered: bool = False) -> None:
        """Leave the queue, or free slot and memory for the next tickets. Further calls have no effect.

        The next ticket of the same request, if there is one, enters the queue at its end.

        :param answered: the slot was held for a whole answer, whose time counts for Retry-After.
        """
        if not self._released:
            self._released = True
            self._admission._release(self, answered)
            self._changed.set()


class Admission:
    """Admission of requests: ``slots`` run, ``queue_size`` wait, and further ones are refused immediately.

    With a budget of tokens (:meth:`limit_tokens`), a ticket that has a slot may wait for memory. It then precedes those
    that wait for a slot, keeps its slot, and does not count for ``queue_size``.

    A release costs the same with 10 and with 10,000 tickets in the queue.

    :param slots: number of slots, 0 to :data:`MAX_SLOTS`. See :meth:`resize`.
    :param queue_size: maximum length of the queue, at least 0.
    :param clock: monotonic seconds; for tests.
    """

    def __init__(self, slots: int, queue_size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.queue_size = queue_size
        self._clock = clock
        self._running: set[Ticket] = set()
        self._waiting: WaitingLine[Ticket] = WaitingLine()
        """Tickets that wait for a slot."""
        self._memory: TokenBudget[Ticket] = TokenBudget()
        """Memory of the tickets that have a slot and have claimed it."""
        self._numbers = itertools.count(1)
        self._reports: Rotation[Ticket] = Rotation(self._report_position)
        self._large = 0
        """Number of slots and places of requests with further tickets."""
        self._draining = False
        self._holding_time = HoldingTime()
        self._usual_slots = 1
        """Number of slots, or the last one above 0."""
        self.resize(slots)

    def __repr__(self) -> str:
        return f"<Admission running={self.running}/{self.slots} waiting={self.waiting}/{self.queue_size}>"

    @property
    def running(self) -> int:
        """Number of tickets that run. It exceeds ``slots`` after :meth:`resize` to fewer, until answers have ended."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Length of the queue, including the tickets that wait for memory."""
        return self.waiting_for_memory + len(self._waiting)

    @property
    def waiting_for_memory(self) -> int:
        """Number of tickets that have a slot and wait for memory."""
        return len(self._memory.waiting)

    @property
    def total_running(self) -> int:
        """Number of tickets that run, of all servers that share the slots."""
        return self.running

    @property
    def total_waiting(self) -> int:
        """Length of the queue of all servers that share it."""
        return self.waiting

    async def open(self) -> None:
        """Start sharing the queue, where it is shared. Called once, on the event loop of the other calls."""

    async def close(self) -> None:
        """Stop sharing the queue. Called once, when all tickets are released."""

    def share_load(self, load: Callable[[], Mapping[str, int]]) -> None:
        """Tell processes that share the queue the number of answers on each server.

        :param load: returns the numbers by the servers' names.
        """

    def other_load(self, name: str) -> int:
        """Return the number of answers on a server that processes run which share the queue."""
        return 0

    def resize(self, slots: int) -> None:
        """Change the number of slots. New ones are granted immediately; running answers keep theirs until they end.

        :param slots: 0 to :data:`MAX_SLOTS`. With 0, tickets wait and keep their positions.

        Raise ValueError if it is out of this range.
        """
        check_slots(slots)
        self._set_slots(slots)

    def limit_tokens(self, budget: int | None) -> None:
        """Set the number of tokens that all running tickets together may claim. Called before the first claim.

        :param budget: None for no limit.
        """
        self._memory.size = budget

    def check_room(self) -> None:
        """Raise the errors of :meth:`reserve_all`, and reserve nothing."""
        if self._draining:
            raise self._draining_error()
        if self._free() <= 0:
            raise self._full_error()

    async def reserve(self) -> Ticket:
        """Reserve a slot or a place in the queue. Raise the errors of :meth:`reserve_all`."""
        [ticket] = await self.reserve_all(1)
        return ticket

    async def reserve_all(self, count: int) -> list[Ticket]:
        """Return the tickets of a request for ``count`` answers, in the order of their answers.

        They reserve free slots and places in the queue, at most one for each slot. The other tickets enter the queue at
        its end, each when a ticket of the request is released: a request never has more places than at first, and other
        requests run between two of its answers. All requests with such tickets together may use no more places than the
        number of slots plus half of the queue.

        Raise :class:`~aiochatstream.errors.TooManyRequests` if no place is free, and
        :class:`~aiochatstream.errors.Draining` after :meth:`drain`.
        """
        return self._reserve(count)

    def drain(self) -> None:
        """Refuse new requests and those in the queue. Running answers continue."""
        self._draining = True
        waiting = [*self._memory.waiting, *self._waiting]
        followers = [follower for ticket in (*self._running, *waiting) for follower in ticket._group.followers]
        for ticket in (*followers, *waiting):
            ticket._refusal = self._draining_error()
            ticket.release()

    def retry_after(self) -> int:
        """Return whole seconds, 1 to 600, until a slot is likely to be free, from the times of recent answers.

        These include the time in which they waited for memory. Without a slot, the number of slots before counts.
        """
        return self._holding_time.retry_after(self.total_waiting - self.waiting_for_memory, self._usual_slots)

    def _set_slots(self, slots: int) -> None:
        self.slots = slots
        self._usual_slots = slots or self._usual_slots
        self._advance()

    def _free(self) -> int:
        """Return the number of free slots and places; below 0 after :meth:`resize` to fewer slots."""
        used = self.total_running + self.waiting_for_memory
        return max(0, self.slots - used) + self.queue_size - (self.total_waiting - self.waiting_for_memory)

    def _full_error(self) -> TooManyRequests:
        return TooManyRequests(
            f"All {self.slots} slots and all {self.queue_size} places in the queue are in use.",
            retry_after=self.retry_after(),
        )

    def _large_error(self) -> TooManyRequests:
        return TooManyRequests(
            "Other requests for many answers use all the places available to such requests. Try again later, "
            "or request fewer answers.",
            retry_after=self.retry_after(),
        )

    def _draining_error(self) -> Draining:
        return Draining("The server is shutting down and accepts no new requests.", retry_after=self.retry_after())

    def _reserve(self, count: int) -> list[Ticket]:
        self.check_room()
        places = min(count, max(1, self.slots), self._free())
        if places < count:
            places = min(places, self.slots + self.queue_size // 2 - self._large)
            if places <= 0:
                raise self._large_error()
        tickets = self._create(count)
        self._place(tickets, places)
        return tickets

    def _create(self, count: int) -> list[Ticket]:
        """Return the tickets of a new request, without places."""
        group = TicketGroup()
        group.followers += [Ticket(self, group, next(self._numbers)) for _ in range(count)]
        return list(group.followers)

    def _place(self, tickets: list[Ticket], places: int) -> None:
        """Enqueue the first ``places`` tickets of a request."""
        for ticket in tickets[:places]:
            self._enqueue_follower(ticket._group)
        self._advance()

    def _enqueue_follower(self, group: TicketGroup) -> None:
        self._enqueue(group.followers.popleft())
        group.places += 1
        self._count_large(group)

    def _enqueue(self, ticket: Ticket) -> None:
        self._waiting.append(ticket)
        ticket._enqueued = True
        ticket._changed.set()

    def _count_large(self, group: TicketGroup) -> None:
        counted = group.places if group.followers else 0
        self._large += counted - group.counted
        group.counted = counted

    def _claim(self, ticket: Ticket, tokens: int) -> None:
        if self._memory.size is None:
            return
        if self._draining:
            raise self._draining_error()
        self._memory.check(tokens)
        ticket._tokens = tokens
        if ticket in self._running:
            self._running.discard(ticket)
            self._use_slot(ticket)
            self._advance()

    def _advance(self) -> None:
        """Grant the free slots and memory, and report the first positions."""
        while self._waiting and self.running + self.waiting_for_memory < self.slots:
            [ticket] = self._waiting.first(1)
            self._grant(ticket)
        for ticket in self._memory.grant():
            self._run(ticket)
        first = self._memory.waiting.first(FIRST_POSITIONS)
        for ticket in (*first, *self._waiting.first(FIRST_POSITIONS - len(first))):
            ticket._report()

    def _grant(self, ticket: Ticket) -> None:
        self._waiting.discard(ticket)
        ticket._granted_at = self._clock()
        self._use_slot(ticket)

    def _use_slot(self, ticket: Ticket) -> None:
        if ticket._tokens is None:
            self._run(ticket)
        else:
            self._memory.enqueue(ticket, ticket._tokens)

    def _run(self, ticket: Ticket) -> None:
        self._running.add(ticket)
        ticket._changed.set()

    def _remove(self, ticket: Ticket) -> None:
        self._waiting.discard(ticket)
        self._memory.discard(ticket)
        self._running.discard(ticket)

    def _position(self, ticket: Ticket) -> int:
        position = self._waiting.position(ticket)
        return self.waiting_for_memory + position if position else self._memory.waiting.position(ticket)

    def _report_position(self, ticket: Ticket) -> None:
        """Report the position of a ticket that is not among the first ones, in its turn."""
        ticket._report()

    def _release(self, ticket: Ticket, answered: bool) -> None:
        group = ticket._group
        if not ticket._enqueued:
            group.followers.remove(ticket)
            self._count_large(group)
            return
        self._remove(ticket)
        if answered and ticket._granted_at is not None:
            self._holding_time.add(self._clock() - ticket._granted_at)
        group.places -= 1
        if group.followers:
            self._enqueue_follower(group)
        self._count_large(group)
        self._advance()


def check_slots(slots: int) -> None:
    """Raise ValueError unless ``slots`` is a number of slots."""
    if not 0 <= slots <= MAX_SLOTS:
        raise ValueError(f"slots: must be a whole number from 0 to {MAX_SLOTS}, not {slots}.")
