"""A least-recently-used cache, bounded in entries, bytes and time."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

SWEEP_BATCH = 100
"""Maximum number of idle entries to drop in one call: more would block the event loop."""

COMMON = ""
"""Share of entries that are charged to no client."""

FAIR_PART = 0.1
"""Part of the capacity that a share may fill before its entries are dropped first."""


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
    """Text by key: at most ``max_entries`` and ``max_bytes``, each entry for ``idle_seconds`` after its last use.

    Each entry is charged to a share, for example a client's address. Without free capacity, the least recently used
    entry is dropped: of :data:`COMMON` if this share fills more than :data:`FAIR_PART` of the capacity, else of the
    largest share that does, else of all. A client with many entries therefore loses its own. A :meth:`pinned` entry is
    never dropped. Times in seconds; ``clock`` is for tests.
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
        """Return the text under ``key`` and mark it as used; None if there is none."""
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
        """Store ``text`` under ``key``. Raise ValueError if it alone is larger than ``max_bytes``.

        :param share: the share to charge; :data:`COMMON` leaves an existing entry in its share.
        """
        value = text.encode()
        if len(value) > self._max_bytes:
            raise ValueError(f"{len(value)} bytes exceed the capacity of {self._max_bytes} bytes.")
        if share == COMMON and key in self._entries:
            share = self._entries[key].share
        self._drop(key)
        self._entries[key] = _Entry(self._clock(), value, share)
        charged = self._shares.setdefault(share, _Share())
        charged.keys[key] = None
        charged.bytes += len(value)
        self.bytes += len(value)
        self.sweep()
        self._evict()

    def pop(self, key: str) -> bool:
        """Remove ``key``. Return True if it was present."""
        idle = self._is_idle(key)
        return self._drop(key) and not idle

    @contextmanager
    def pinned(self, key: str) -> Iterator[None]:
        """Protect ``key`` from being dropped in this block, even if it is stored later in the block."""
        self._pins[key] += 1
        try:
            yield
        finally:
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]
            self._evict()

    def sweep(self) -> bool:
        """Drop a bounded number of idle entries. Return True if there may be more."""
        idle = list(islice((key for key in self._idle_keys() if key not in self._pins), SWEEP_BATCH))
        for key in idle:
            self._drop(key)
        return len(idle) == SWEEP_BATCH

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

    def _evict(self) -> None:
        while True:
            if len(self._entries) > self._max_entries:
                victim = self._victim(lambda share: len(share.keys), self._max_entries * FAIR_PART)
            elif self.bytes > self._max_bytes:
                victim = self._victim(lambda share: share.bytes, self._max_bytes * FAIR_PART)
            else:
                return
            if victim is None:
                return
            self._drop(victim)

    def _victim(self, size: Callable[[_Share], int], fair_size: float) -> str | None:
        """Return the key to drop next; None if all are pinned."""
        largest = max(self._shares.values(), key=size)
        for share in (self._shares.get(COMMON, NOTHING), largest):
            if size(share) > fair_size and (key := self._unpinned(share.keys)) is not None:
                return key
        return self._unpinned(self._entries)

    def _unpinned(self, keys: Iterable[str]) -> str | None:
        return next((key for key in keys if key not in self._pins), None)

    def _idle_keys(self) -> Iterator[str]:
        """Yield the idle keys, oldest first: entries are ordered by their last use."""
        for key in self._entries:
            if not self._expired(key):
                return
            yield key

    def _is_idle(self, key: str) -> bool:
        return key in self._entries and key not in self._pins and self._expired(key)

    def _expired(self, key: str) -> bool:
        return self._entries[key].used < self._clock() - self._idle_seconds
