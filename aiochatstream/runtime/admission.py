"""Who may run now, who waits, and who is refused: slots and a bounded first-in-first-out queue.

Knows nothing of HTTP or models. All calls are made on the event loop; nothing here blocks or needs a lock.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable

from aiochatstream.errors import Draining, TooManyRequests

ASSUMED_SECONDS = 5.0
"""What an answer is taken to need until the first one has ended."""

SMOOTHING = 0.2
"""Weight of the newest holding time in the running mean behind Retry-After."""


class Ticket:
    """A slot, or a place in the queue for one. Made by :meth:`Admission.reserve`, given back by :meth:`release`.

    :param followers: the tickets of the same request that have no place yet, shared by all of its tickets.
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
        """Place in the queue: 1 is next, 0 is not waiting."""
        return self._position

    async def wait_enqueued(self) -> None:
        """Return when this ticket has a place or a slot, or is released: other tickets of its request come first."""
        while not self._enqueued and not self._released:
            self._moved.clear()
            await self._moved.wait()

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

        The next ticket of the same request, if there is one, takes a place at the end of the queue.

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

    def check_room(self) -> None:
        """Raise as :meth:`reserve_all`, and take nothing."""
        if self._draining:
            raise self._draining_error()
        if self.running + self.waiting >= self.slots + self.queue_size:
            raise TooManyRequests(
                f"All {self.slots} slots and all {self.queue_size} places in the queue are taken.",
                retry_after=self.retry_after(),
            )

    def reserve(self) -> Ticket:
        """Take a slot or a place in the queue, in one step. Raises as :meth:`reserve_all`."""
        return self.reserve_all(1)[0]

    def reserve_all(self, count: int) -> list[Ticket]:
        """Return the tickets of a request for ``count`` answers, in the order of their turns.

        They take slots or places in the queue, in one step: as many as are free, at most ``count`` and as many as there
        are slots. The other tickets follow at the end of the queue, each when one of the request is released: a request
        never has more places than at first, and those who wait have their turn between two of its answers. Because it
        has them for so long, all such requests together have at most as many places as the slots and half of the queue.

        Raises :class:`~aiochatstream.errors.TooManyRequests` when no place is free,
        :class:`~aiochatstream.errors.Draining` after :meth:`drain`.
        """
        self.check_room()
        free = self.slots + self.queue_size - self.running - self.waiting
        if count > min(self.slots, free):
            held = sum(bool(ticket._followers) for ticket in (*self._running, *self._waiting))
            free = min(free, self.slots + self.queue_size // 2 - held)
            if free <= 0:
                raise TooManyRequests(
                    "Other requests for many answers have as many places as they may have. Send this one later, or ask "
                    "for fewer answers at once.",
                    retry_after=self.retry_after(),
                )
        followers: deque[Ticket] = deque()
        tickets = [Ticket(self, followers) for _ in range(count)]
        followers += tickets
        for _ in range(min(count, self.slots, free)):
            self._enqueue(followers.popleft())
        self._advance()
        return tickets

    def drain(self) -> None:
        """Refuse all who come and send away all who wait; who runs goes on."""
        self._draining = True
        followers = [one for ticket in (*self._running, *self._waiting) for one in ticket._followers]
        for ticket in (*followers, *self._waiting):
            ticket._refusal = self._draining_error()
            ticket.release()

    def retry_after(self) -> int:
        """Whole seconds, 1 to 600, until a place is likely to be free, from how long answers took lately."""
        mean = ASSUMED_SECONDS if self._mean_seconds is None else self._mean_seconds
        return min(600, max(1, math.ceil(mean * (self.waiting + 1) / self.slots)))

    def _draining_error(self) -> Draining:
        return Draining("The server is shutting down and takes no new requests.", retry_after=self.retry_after())

    def _enqueue(self, ticket: Ticket) -> None:
        ticket._enqueued = True
        self._waiting[ticket] = None
        ticket._move(self.waiting)

    def _advance(self) -> None:
        """Grant the free slots, and count the places."""
        while self._waiting and self.running < self.slots:
            ticket, _ = self._waiting.popitem(last=False)
            ticket._granted_at = self._clock()
            self._running.add(ticket)
            ticket._move(0)
        for place, ticket in enumerate(self._waiting, 1):
            ticket._move(place)

    def _release(self, ticket: Ticket, answered: bool) -> None:
        if not ticket._enqueued:
            ticket._followers.remove(ticket)
            return
        self._waiting.pop(ticket, None)
        self._running.discard(ticket)
        if answered and ticket._granted_at is not None:
            held = self._clock() - ticket._granted_at
            mean = held if self._mean_seconds is None else self._mean_seconds
            self._mean_seconds = mean + SMOOTHING * (held - mean)
        if ticket._followers:
            self._enqueue(ticket._followers.popleft())
        self._advance()
