"""A mapping that cannot outgrow its bounds."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

SWEPT_AT_ONCE = 100
"""How many idle entries go in one piece, so that nobody waits for it."""


COMMON = ""
"""Share of the entries that are charged to nobody."""

FAIR_PART = 0.1
"""Part of the room that a share may fill before it is the first to lose entries."""


class _Entry(NamedTuple):
    used: float
    value: bytes
    share: str


@dataclass(slots=True)
class _Share:
    """Entries of one share, the least recently used first, and their bytes."""

    keys: OrderedDict[str, None] = field(default_factory=OrderedDict)
    bytes: int = 0


NOTHING = _Share()


class BoundedMap:
    """Keeps text by key, at most ``max_entries`` and ``max_bytes`` of it, each for ``idle_seconds`` after its last use.

    Each entry is charged to a share: a client's address, for example. If there is no room, the least recently used
    entry is dropped: that of :data:`COMMON` if this share fills more than :data:`FAIR_PART` of the room, else that of
    the largest share which does, else that of all. So a client with many entries pushes out its own. Nothing that is
    :meth:`pinned` is dropped. Times in seconds; ``clock`` is for tests.
    """

    def __init__(
        self, *, max_entries: int, idle_seconds: float, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        for name, value in (("max_entries", max_entries), ("idle_seconds", idle_seconds), ("max_bytes", max_bytes)):
            if not value > 0:
                raise ValueError(f"{name}: must be above 0, not {value}.")
        self._max_entries = max_entries
        self._idle_seconds = idle_seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._shares: dict[str, _Share] = {}
        self._pins: Counter[str] = Counter()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> str | None:
        """What is kept under ``key``, which counts as used now; None where there is nothing (any more)."""
        self.sweep()
        if self._is_idle(key):
            self._drop(key)
        if key not in self._entries:
            return None
        entry = self._entries[key]
        self._entries[key] = entry._replace(used=self._clock())
        self._entries.move_to_end(key)
        self._shares[entry.share].keys.move_to_end(key)
        return entry.value.decode()

    def put(self, key: str, text: str, share: str = COMMON) -> None:
        """Keep ``text`` under ``key``. Raises ValueError for one that alone is over ``max_bytes``.

        :param share: share that is charged; :data:`COMMON` leaves an entry in the share that it has.
        """
        value = text.encode()
        if len(value) > self._max_bytes:
            raise ValueError(f"{len(value)} bytes are more than the {self._max_bytes} that are kept in all.")
        if share == COMMON and key in self._entries:
            share = self._entries[key].share
        self._drop(key)
        self._entries[key] = _Entry(self._clock(), value, share)
        charged = self._shares.setdefault(share, _Share())
        charged.keys[key] = None
        charged.bytes += len(value)
        self.bytes += len(value)
        self.sweep()
        self._make_room()

    def pop(self, key: str) -> bool:
        """Forget ``key``; tell whether there was something to forget."""
        idle = self._is_idle(key)
        return self._drop(key) and not idle

    @contextmanager
    def pinned(self, key: str) -> Iterator[None]:
        """In this block, ``key`` is not dropped for want of room or of use, whether it is there already or not yet."""
        self._pins[key] += 1
        try:
            yield
        finally:
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]
            self._make_room()

    def sweep(self) -> bool:
        """Drop what is idle, a bounded number of entries; tell whether there may be more."""
        idle = list(islice((key for key in self._longest_unused() if key not in self._pins), SWEPT_AT_ONCE))
        for key in idle:
            self._drop(key)
        return len(idle) == SWEPT_AT_ONCE

    def _drop(self, key: str) -> bool:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= len(entry.value)
            share = self._shares[entry.share]
            share.bytes -= len(entry.value)
            del share.keys[key]
            if not share.keys:
                del self._shares[entry.share]
        return entry is not None

    def _make_room(self) -> None:
        while True:
            if len(self._entries) > self._max_entries:
                victim = self._first_to_go(lambda share: len(share.keys), self._max_entries * FAIR_PART)
            elif self.bytes > self._max_bytes:
                victim = self._first_to_go(lambda share: share.bytes, self._max_bytes * FAIR_PART)
            else:
                return
            if victim is None:
                return
            self._drop(victim)

    def _first_to_go(self, size: Callable[[_Share], int], fair_size: float) -> str | None:
        """Return the key that is dropped next; None if all are pinned."""
        largest = max(self._shares.values(), key=size)
        for share in (self._shares.get(COMMON, NOTHING), largest):
            if size(share) > fair_size and (key := self._unpinned(share.keys)) is not None:
                return key
        return self._unpinned(self._entries)

    def _unpinned(self, keys: Iterable[str]) -> str | None:
        return next((key for key in keys if key not in self._pins), None)

    def _longest_unused(self) -> Iterator[str]:
        """The idle ones, oldest first: the entries stand in the order of their last use."""
        for key in self._entries:
            if not self._was_idle(key):
                return
            yield key

    def _is_idle(self, key: str) -> bool:
        return key in self._entries and key not in self._pins and self._was_idle(key)

    def _was_idle(self, key: str) -> bool:
        return self._entries[key].used < self._clock() - self._idle_seconds
