"""Who may run now, who waits, and who is refused: slots and a bounded first-in-first-out queue.

Knows nothing of HTTP or models. All calls are made on the event loop; nothing here blocks or needs a lock.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable

from aiochatstream.errors import Draining, TooManyRequests

ASSUMED_SECONDS = 5.0
"""What an answer is taken to need until the first one has ended."""

SMOOTHING = 0.2
"""Weight of the newest holding time in the running mean behind Retry-After."""


class Ticket:
    """A slot, or a place in the queue for one. Made by :meth:`Admission.reserve`, given back by :meth:`release`."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._moved = asyncio.Event()
        self._refusal: Draining | None = None
        self._granted_at: float | None = None
        self._released = False
        self._position = 0

    def __repr__(self) -> str:
        state = "released" if self._released else "running" if self.running else f"waiting at {self.position}"
        return f"<Ticket {state}>"

    @property
    def running(self) -> bool:
        """True while this ticket holds a slot."""
        return self._granted_at is not None and not self._released

    @property
    def position(self) -> int:
        """Place in the queue: 1 is next, 0 is not waiting."""
        return self._position

    async def positions(self) -> AsyncGenerator[int, None]:
        """Yield the place in the queue each time it changes; end when the slot is granted or the ticket released.

        Raises :class:`~aiochatstream.errors.Draining` when the waiting are sent away.
        """
        told = 0
        while not self.running:
            if self._refusal is not None:
                raise self._refusal
            if self._released:
                return
            if self._position != told:
                told = self._position
                yield told
            else:
                self._moved.clear()
                await self._moved.wait()

    def _move(self, position: int) -> None:
        if position != self._position:
            self._position = position
            self._moved.set()

    def release(self, *, answered: bool = False) -> None:
        """Leave the queue, or free the slot for the next in line. Any number of calls is one.

        :param answered: it was held for a whole answer, so that its time counts for Retry-After.
        """
        if not self._released:
            self._released = True
            self._admission._release(self, answered)
            self._position = 0
            self._moved.set()


class Admission:
    """``slots`` run at once, ``queue_size`` wait, and one more is refused at once.

    :param slots: how many hold a slot at the same time, 1 or more.
    :param queue_size: how many may wait, 0 or more.
    :param clock: seconds, monotonic; for tests.
    """

    def __init__(self, slots: int, queue_size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.slots = slots
        self.queue_size = queue_size
        self._clock = clock
        self._running: set[Ticket] = set()
        self._waiting: OrderedDict[Ticket, None] = OrderedDict()
        self._draining = False
        self._mean_seconds: float | None = None

    def __repr__(self) -> str:
        return f"<Admission running={self.running}/{self.slots} waiting={self.waiting}/{self.queue_size}>"

    @property
    def running(self) -> int:
        """Slots that are taken."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Places in the queue that are taken."""
        return len(self._waiting)

    def check_room(self, count: int = 1) -> None:
        """Raise as :meth:`reserve_all`, and take nothing."""
        if self._draining:
            raise self._draining_error()
        free = self.slots + self.queue_size - self.running - self.waiting
        if free < count:
            taken = "taken" if not free else f"taken but {free}, and {count} are asked for"
            raise TooManyRequests(
                f"All {self.slots} slots and all {self.queue_size} places in the queue are {taken}.",
                retry_after=self.retry_after(),
            )

    def reserve(self) -> Ticket:
        """Take a slot or a place in the queue, in one step. Raises as :meth:`reserve_all`."""
        return self.reserve_all(1)[0]

    def reserve_all(self, count: int) -> list[Ticket]:
        """Take ``count`` slots or places in the queue, in one step: all or none.

        Raises :class:`~aiochatstream.errors.TooManyRequests` when there is no room for them,
        :class:`~aiochatstream.errors.Draining` after :meth:`drain`.
        """
        self.check_room(count)
        return [self._reserve() for _ in range(count)]

    def drain(self) -> None:
        """Refuse all who come and send away all who wait; who runs goes on."""
        self._draining = True
        for ticket in list(self._waiting):
            ticket._refusal = self._draining_error()
            ticket.release()

    def retry_after(self) -> int:
        """Whole seconds, 1 to 600, until a place is likely to be free, from how long answers took lately."""
        mean = ASSUMED_SECONDS if self._mean_seconds is None else self._mean_seconds
        return min(600, max(1, math.ceil(mean * (self.waiting + 1) / self.slots)))

    def _draining_error(self) -> Draining:
        return Draining("The server is shutting down and takes no new requests.", retry_after=self.retry_after())

    def _reserve(self) -> Ticket:
        ticket = Ticket(self)
        if self.running < self.slots:
            self._grant(ticket)
        else:
            self._waiting[ticket] = None
            ticket._move(self.waiting)
        return ticket

    def _grant(self, ticket: Ticket) -> None:
        ticket._granted_at = self._clock()
        self._running.add(ticket)
        ticket._move(0)

    def _release(self, ticket: Ticket, answered: bool) -> None:
        self._waiting.pop(ticket, None)
        self._running.discard(ticket)
        if answered and ticket._granted_at is not None:
            held = self._clock() - ticket._granted_at
            mean = held if self._mean_seconds is None else self._mean_seconds
            self._mean_seconds = mean + SMOOTHING * (held - mean)
        while self._waiting and self.running < self.slots:
            self._grant(self._waiting.popitem(last=False)[0])
        for place, other in enumerate(self._waiting, 1):
            other._move(place)
