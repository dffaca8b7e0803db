"""Regular callbacks for many members, at a limited rate for each and for all together."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Generic, TypeVar

Member = TypeVar("Member", bound=Hashable)

INTERVAL = 0.5
"""Seconds between two callbacks for the same member."""

PAUSE = 0.05
"""Seconds between two batches of callbacks, in which other tasks run."""

BATCH = 50
"""Maximum number of callbacks in a batch: 1,000 a second. More than 500 members have longer intervals."""


class Rotation(Generic[Member]):
    """Calls ``callback`` with each member in turn, at most twice a second with each, and 1,000 times in total.

    The event loop has one timer, for the next batch. ``callback`` must not change the rotation.
    """

    def __init__(self, callback: Callable[[Member], None]) -> None:
        self._callback = callback
        self._due: OrderedDict[Member, float] = OrderedDict()
        """Times of the next callbacks, in ascending order."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due)

    def restart(self, member: Member) -> None:
        """Call back with a member in :data:`INTERVAL` seconds, and regularly from then on, until :meth:`discard`."""
        due = self._loop.time() + INTERVAL
        self._put_last(member, due)
        if self._timer is None:
            self._schedule(due)

    def discard(self, member: Member) -> None:
        """Stop the callbacks with a member."""
        self._due.pop(member, None)
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def _put_last(self, member: Member, due: float) -> None:
        self._due[member] = due
        self._due.move_to_end(member)

    def _schedule(self, time: float) -> None:
        self._timer = self._loop.call_at(time, self._call_back, time)

    def _call_back(self, scheduled: float) -> None:
        now = max(scheduled, self._loop.time())  # loops run timers a little early
        for member, due in list(islice(self._due.items(), BATCH)):
            if due > now:
                break
            self._put_last(member, now + INTERVAL)
            self._callback(member)
        self._schedule(max(now + PAUSE, next(iter(self._due.values()))))
