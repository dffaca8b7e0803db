"""A mapping that cannot outgrow its bounds."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

SWEPT_AT_ONCE = 100
"""How many idle entries go in one piece, so that nobody waits for it."""


class BoundedMap:
    """Keeps text by key, at most ``max_entries`` and ``max_bytes`` of it, each for ``idle_seconds`` after its last use.

    What was not used for the longest time goes first, but nothing that is :meth:`pinned`. Times in seconds; ``clock``
    is for tests.
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
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
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
        value = self._entries[key][1]
        self._entries[key] = (self._clock(), value)
        self._entries.move_to_end(key)
        return value.decode()

    def put(self, key: str, text: str) -> None:
        """Keep ``text`` under ``key``. Raises ValueError for one that alone is over ``max_bytes``."""
        value = text.encode()
        if len(value) > self._max_bytes:
            raise ValueError(f"{len(value)} bytes are more than the {self._max_bytes} that are kept in all.")
        self._drop(key)
        self._entries[key] = (self._clock(), value)
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
            self.bytes -= len(entry[1])
        return entry is not None

    def _make_room(self) -> None:
        while len(self._entries) > self._max_entries or self.bytes > self._max_bytes:
            oldest = next((key for key in self._entries if key not in self._pins), None)
            if oldest is None:
                return
            self._drop(oldest)

    def _longest_unused(self) -> Iterator[str]:
        """The idle ones, oldest first: the entries stand in the order of their last use."""
        for key in self._entries:
            if not self._was_idle(key):
                return
            yield key

    def _is_idle(self, key: str) -> bool:
        return key in self._entries and key not in self._pins and self._was_idle(key)

    def _was_idle(self, key: str) -> bool:
        return self._entries[key][0] < self._clock() - self._idle_seconds
