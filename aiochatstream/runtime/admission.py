"""Admission control: slots, and a bounded first-in-first-out queue.

All calls are made on the event loop; none blocks or needs a lock.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable

from aiochatstream.errors import Draining, TooManyRequests

ASSUMED_SECONDS = 5.0
"""Assumed seconds of an answer, until the first answer has ended."""

SMOOTHING = 0.2
"""Weight of the newest holding time in the running mean behind Retry-After."""


class Ticket:
    """A slot, or a place in the queue. Created by :meth:`Admission.reserve`; :meth:`release` frees it.

    :param followers: tickets of the same request without a place, shared by all of its tickets.
    """

    def __init__(self, admission: Admission, followers: deque[Ticket]) -> None:
        self._admission, self._followers = admission, followers
        self._enqueued = False
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
        """Position in the queue: 1 is next, 0 is not waiting."""
        return self._position

    async def wait_enqueued(self) -> None:
        """Wait until this ticket has a place or a slot, or is released: other tickets of its request are first."""
        while not self._enqueued and not self._released:
            self._moved.clear()
            await self._moved.wait()

    async def positions(self) -> AsyncGenerator[int, None]:
        """Yield the position in the queue each time it changes, until the slot is granted or the ticket released.

        Raise :class:`~aiochatstream.errors.Draining` if the queue is drained.
        """
        last = 0
        while not self.running:
            if self._refusal is not None:
                raise self._refusal
            if self._released:
                return
            if self._position != last:
                last = self._position
                yield last
            else:
                self._moved.clear()
                await self._moved.wait()

    def _move(self, position: int) -> None:
        if position != self._position:
            self._position = position
            self._moved.set()

    def release(self, *, answered: bool = False) -> None:
        """Leave the queue, or free the slot for the next ticket. Further calls have no effect.

        The next ticket of the same request, if there is one, enters the queue at its end.

        :param answered: the slot was held for a whole answer, whose time counts for Retry-After.
        """
        if not self._released:
            self._released = True
            self._admission._release(self, answered)
            self._position = 0
            self._moved.set()


class Admission:
    """Admission of requests: ``slots`` run, ``queue_size`` wait, and further ones are refused immediately.

    :param slots: number of slots, at least 1.
    :param queue_size: maximum length of the queue, at least 0.
    :param clock: monotonic seconds; for tests.
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
        """Number of slots in use."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Length of the queue."""
        return len(self._waiting)

    def check_room(self) -> None:
        """Raise the errors of :meth:`reserve_all`, and reserve nothing."""
        if self._draining:
            raise self._draining_error()
        if self.running + self.waiting >= self.slots + self.queue_size:
            raise TooManyRequests(
                f"All {self.slots} slots and all {self.queue_size} places in the queue are in use.",
                retry_after=self.retry_after(),
            )

    def reserve(self) -> Ticket:
        """Reserve a slot or a place in the queue. Raise the errors of :meth:`reserve_all`."""
        return self.reserve_all(1)[0]

    def reserve_all(self, count: int) -> list[Ticket]:
        """Return the tickets of a request for ``count`` answers, in the order of their answers.

        They reserve free slots and places in the queue, at most one for each slot. The other tickets enter the queue at
        its end, each when a ticket of the request is released: a request never has more places than at first, and other
        requests run between two of its answers. All requests with such tickets together may use no more places than the
        number of slots plus half of the queue.

        Raise :class:`~aiochatstream.errors.TooManyRequests` if no place is free, and
        :class:`~aiochatstream.errors.Draining` after :meth:`drain`.
        """
        self.check_room()
        free = self.slots + self.queue_size - self.running - self.waiting
        if count > min(self.slots, free):
            used = sum(bool(ticket._followers) for ticket in (*self._running, *self._waiting))
            free = min(free, self.slots + self.queue_size // 2 - used)
            if free <= 0:
                raise TooManyRequests(
                    "Other requests for many answers use all the places available to such requests. Try again later, "
                    "or request fewer answers.",
                    retry_after=self.retry_after(),
                )
        followers: deque[Ticket] = deque()
        tickets = [Ticket(self, followers) for _ in range(count)]
        followers += tickets
        for _ in range(min(count, self.slots, free)):
            self._enqueue(followers.popleft())
        self._advance()
        return tickets

    def resize(self, slots: int) -> None:
        """Change the number of slots; 0 lets everyone wait. Running answers continue."""
        self.slots = slots
        self._advance()

    def drain(self) -> None:
        """Refuse new requests and those in the queue. Running answers continue."""
        self._draining = True
        followers = [follower for ticket in (*self._running, *self._waiting) for follower in ticket._followers]
        for ticket in (*followers, *self._waiting):
            ticket._refusal = self._draining_error()
            ticket.release()

    def retry_after(self) -> int:
        """Return whole seconds, 1 to 600, until a place is likely to be free, from the times of recent answers."""
        mean = ASSUMED_SECONDS if self._mean_seconds is None else self._mean_seconds
        return min(600, max(1, math.ceil(mean * (self.waiting + 1) / max(1, self.slots))))

    def _draining_error(self) -> Draining:
        return Draining("The server is shutting down and accepts no new requests.", retry_after=self.retry_after())

    def _enqueue(self, ticket: Ticket) -> None:
        ticket._enqueued = True
        self._waiting[ticket] = None
        ticket._move(self.waiting)

    def _advance(self) -> None:
        """Grant the free slots, and update the positions."""
        while self._waiting and self.running < self.slots:
            ticket, _ = self._waiting.popitem(last=False)
            ticket._granted_at = self._clock()
            self._running.add(ticket)
            ticket._move(0)
        for position, ticket in enumerate(self._waiting, 1):
            ticket._move(position)

    def _release(self, ticket: Ticket, answered: bool) -> None:
        if not ticket._enqueued:
            ticket._followers.remove(ticket)
            return
        self._waiting.pop(ticket, None)
        self._running.discard(ticket)
        if answered and ticket._granted_at is not None:
            seconds = self._clock() - ticket._granted_at
            mean = seconds if self._mean_seconds is None else self._mean_seconds
            self._mean_seconds = mean + SMOOTHING * (seconds - mean)
        if ticket._followers:
            self._enqueue(ticket._followers.popleft())
        self._advance()
