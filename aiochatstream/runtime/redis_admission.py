"""Admission control for several servers ("fronts") that share slots and one queue, in Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiochatstream.errors import StoreUnavailable, Unavailable
from aiochatstream.runtime.admission import FIRST_POSITIONS, Admission, Ticket, check_slots
from aiochatstream.runtime.shared_queue import (
    LARGE,
    LEASE_SECONDS,
    FrontReport,
    QueueState,
    SharedQueue,
    WholeReport,
    digest,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

TICK_SECONDS = 0.02
"""Minimum seconds between two reports, and maximum seconds while tickets wait."""

RENEWAL_SECONDS = 1.0
"""Maximum seconds between two reports while no ticket waits."""

RECONNECT_SECONDS = 0.5
"""Seconds between two attempts to reach Redis."""


@dataclass(eq=False)
class PendingRequest:
    """A request that waits for the decision of Redis."""

    tickets: list[Ticket]
    result: asyncio.Future[list[Ticket]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(slots=True)
class QueueEntry:
    """A ticket in the queue.

    score: microseconds since 1970 when the ticket entered the queue, which has this order.
    position: position among the tickets of all fronts; 0 if unknown.
    """

    ticket: Ticket
    score: int
    position: int = 0


class RedisAdmission(Admission):
    """Admission of requests to slots that all fronts with the same ``name`` share: first in, first out among all
    fronts, and never more than the slots at a time.

    The number of slots is the smallest one of the fronts, so that it fits the upstreams that each of them reaches. A
    front without slots does not count, and its tickets do not hold up others; they return to their places in the queue
    when it has slots again. ``queue_size`` limits the queue of all fronts together.

    A front reports its changes at most every 20 ms, all in one call of Redis. A front that dies loses its slots and
    places within 3 s. While Redis is not available, each front uses its part of the slots, at least one, and has a
    queue of its own. Answers that run at the beginning of the failure continue, so that more than the shared number of
    slots may be in use for their time. When Redis is available again, all tickets return to the shared queue.

    There is no budget of tokens, because memory is each server's own.

    :param redis: a client of redis-py.
    :param name: name of the queue: 1 to 64 of A-Z a-z 0-9 - _ and dots.
    :param slots: number of slots of this front's own engine. See :meth:`resize`.
    :param queue_size: maximum length of the shared queue.
    :param clock: monotonic seconds; for tests.

    load: returns the number of answers that this front runs on each upstream, for :meth:`other_load`. An upstream must
        have the same name on all fronts.
    """

    def __init__(
        self, redis: Redis, name: str, slots: int, queue_size: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.load: Callable[[], Mapping[str, int]] = dict
        self._queue = SharedQueue(redis, name)
        self._state = QueueState(1, 0, 0, 0, (), (), (), (), {})
        self._connected = False
        """True while only Redis grants slots."""
        self._own_slots = slots
        self._pending: list[PendingRequest] = []
        self._entries: dict[int, QueueEntry] = {}
        """The tickets in the queue, by number."""
        self._must_report_whole = True
        self._followers: set[int] = set()
        self._left: set[int] = set()
        self._freed = 0
        """Changes since the last report, like :class:`~aiochatstream.runtime.shared_queue.FrontReport`'s."""
        self._due: set[int] = set()
        """Tickets whose turn it is to report their positions."""
        self._wake, self._closing = asyncio.Event(), asyncio.Event()
        self._reporting: asyncio.Task[None] | None = None
        super().__init__(slots, queue_size, clock=clock)

    @property
    def total_running(self) -> int:
        return self._state.running if self._sharing else self.running

    @property
    def total_waiting(self) -> int:
        return self._state.waiting if self._sharing else self.waiting

    @property
    def _sharing(self) -> bool:
        """True while the tickets of this front are in the shared queue."""
        return self._connected and self._own_slots > 0

    def share_load(self, load: Callable[[], Mapping[str, int]]) -> None:
        self.load = load

    def other_load(self, name: str) -> int:
        """Return the number of answers that the other fronts ran on an upstream when they reported last."""
        return self._state.load.get(digest(name), 0) if self._connected else 0

    async def open(self) -> None:
        """Join the other fronts, if Redis is available, and report to it until :meth:`close`."""
        await self._connect()
        self._reporting = asyncio.create_task(self._report_regularly(), name="shared queue")

    async def close(self) -> None:
        """Leave the other fronts."""
        self._closing.set()
        self._wake.set()
        if self._reporting is not None:
            await self._reporting
        if self._connected:
            with suppress(StoreUnavailable):
                await self._queue.leave()

    def resize(self, slots: int) -> None:
        """Change the number of slots of this front's own engine. With 0, its tickets wait outside the shared queue.

        Raise ValueError if it is out of range.
        """
        check_slots(slots)
        if not (slots and self._own_slots):
            self._must_report_whole = True
        self._own_slots = slots
        if not self._connected:
            self._set_slots(self._part())
        elif not slots:
            self._set_slots(0)
            self._decide(self._take_pending())
        self._wake.set()

    async def reserve_all(self, count: int) -> list[Ticket]:
        if not self._sharing or self._draining:
            return self._reserve(count)
        request = PendingRequest(self._create(count))
        self._pending.append(request)
        self._wake.set()
        try:
            return await request.result
        except asyncio.CancelledError:
            if not request.result.cancelled() and request.result.exception() is None:
                _release_all(request.result.result())
            raise

    def limit_tokens(self, budget: int | None) -> None:
        """Have no effect."""

    def drain(self) -> None:
        super().drain()
        self._decide(self._take_pending())

    def _part(self) -> int:
        """Return the number of slots that this front uses without Redis."""
        return self._own_slots and max(1, self._own_slots // self._state.fronts)

    def _take_pending(self) -> list[PendingRequest]:
        """Return the pending requests that were not cancelled, and remove them."""
        requests = [request for request in self._pending if not request.result.done()]
        self._pending.clear()
        return requests

    def _decide(self, requests: Iterable[PendingRequest]) -> None:
        """Admit or refuse requests without Redis."""
        for request in requests:
            if request.result.done():
                continue
            try:
                request.result.set_result(self._reserve(len(request.tickets)))
            except Unavailable as error:
                request.result.set_exception(error)

    def _enqueue(self, ticket: Ticket) -> None:
        super()._enqueue(ticket)
        self._entries[ticket.number] = QueueEntry(ticket, time.time_ns() // 1000)
        if self._own_slots:
            self._followers.add(ticket.number)

    def _advance(self) -> None:
        if not self._connected:
            super()._advance()

    def _grant(self, ticket: Ticket) -> None:
        super()._grant(ticket)
        del self._entries[ticket.number]

    def _remove(self, ticket: Ticket) -> None:
        if ticket in self._running:
            self._freed += 1
        elif ticket.number in self._followers:
            self._followers.remove(ticket.number)
        elif self._own_slots:
            self._left.add(ticket.number)
        self._entries.pop(ticket.number, None)
        super()._remove(ticket)
        self._wake.set()

    def _position(self, ticket: Ticket) -> int:
        entry = self._entries.get(ticket.number)
        return entry.position if entry and entry.position else super()._position(ticket)

    def _report_position(self, ticket: Ticket) -> None:
        if self._sharing:
            self._due.add(ticket.number)
        else:
            super()._report_position(ticket)

    async def _report_regularly(self) -> None:
        loop = asyncio.get_running_loop()
        reported = loop.time()
        while not self._closing.is_set():
            if not self._connected:
                await _wait(self._closing, RECONNECT_SECONDS)
                await self._connect()
                continue
            busy = self._waiting or self._free() <= 0
            await _wait(self._wake, TICK_SECONDS if busy else RENEWAL_SECONDS)
            await asyncio.sleep(reported + TICK_SECONDS - loop.time())
            reported = loop.time()
            await self._report()

    async def _connect(self) -> None:
        with suppress(StoreUnavailable):
            await self._queue.check()
            self._connected = True
            await self._report()

    async def _report(self) -> None:
        """Report to Redis, and follow its decisions."""
        self._wake.clear()
        requests, due = self._take_pending(), self._due
        report = self._next_report(requests)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LEASE_SECONDS
        try:
            state = await self._queue.report(report)
        except StoreUnavailable:
            self._disconnect(requests)
            return
        if state is None or loop.time() > deadline:  # a suspended process may have lost its lease
            self._must_report_whole = True
            self._pending[:0] = requests
            if not self._own_slots:
                self._decide(self._take_pending())
            self._wake.set()
        else:
            self._follow(state, requests, due)

    def _next_report(self, requests: list[PendingRequest]) -> FrontReport:
        """Return the report of the current state, and begin to collect changes for the next one."""
        first = (ticket.number for ticket in self._waiting.first(FIRST_POSITIONS))
        common: dict[str, Any] = {
            "slots": self._own_slots,
            "queue_size": self.queue_size,
            "large": self._large,
            "load": self.load(),
            "requests": [(request.tickets[0].number, len(request.tickets)) for request in requests],
            "positions": [*self._due, *first] if self._own_slots else [],
        }
        if self._must_report_whole:
            entries = self._entries.items() if self._own_slots else ()
            waiting = [(number, entry.score) for number, entry in entries]
            report: FrontReport = WholeReport(
                **common, running=self.running, waiting=waiting, fronts=self._state.fronts
            )
        else:
            report = FrontReport(**common, followers=[*self._followers], left=[*self._left], freed=self._freed)
        self._must_report_whole = False
        self._followers, self._left, self._freed, self._due = set(), set(), 0, set()
        return report

    def _follow(self, state: QueueState, requests: list[PendingRequest], due: set[int]) -> None:
        """Follow the decisions of Redis.

        :param requests: requests of the report.
        :param due: tickets that report their positions if they have changed, besides the first ones.
        """
        self._state = state
        if self._own_slots:
            self._set_slots(state.slots)
        for request, places in zip(requests, state.places, strict=True):
            self._place(request.tickets, max(0, places))
        for number, score in state.scores:
            self._followers.discard(number)
            if number in self._entries:
                self._entries[number].score = score
        for number, position in state.positions:
            if number in self._entries:
                self._entries[number].position = position
                if position <= FIRST_POSITIONS or number in due:
                    self._entries[number].ticket._report()
        for number in state.granted if self._own_slots else ():
            if number in self._entries:  # it may have left in the meantime
                self._grant(self._entries[number].ticket)
        for request, places in zip(requests, state.places, strict=True):
            self._answer(request, places)

    def _answer(self, request: PendingRequest, places: int) -> None:
        """Return the tickets to a request, or refuse it, after Redis has decided."""
        if self._draining or request.result.done():
            _release_all(request.tickets)
        if request.result.done():
            return
        if self._draining:
            request.result.set_exception(self._draining_error())
        elif places > 0:
            request.result.set_result(request.tickets)
        else:
            request.result.set_exception(self._large_error() if places == LARGE else self._full_error())

    def _disconnect(self, requests: list[PendingRequest]) -> None:
        """Continue without Redis.

        :param requests: requests that Redis has not decided.
        """
        self._connected = False
        self._must_report_whole = True
        for entry in self._entries.values():
            entry.position = 0
        self._set_slots(self._part())
        self._decide([*requests, *self._take_pending()])


def _release_all(tickets: list[Ticket]) -> None:
    for ticket in reversed(tickets):  # first those without a place, which would get one
        ticket.release()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most ``seconds``."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
