"""A mapping that cannot outgrow its bounds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable


class BoundedMap:
    """Keeps text by key, at most ``max_entries`` and ``max_bytes`` of it, each for ``idle_seconds`` after its last use.

    What was not used for the longest time goes first. Times in seconds; ``clock`` is for tests.
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
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> str | None:
        """What is kept under ``key``, which counts as used now; None where there is nothing (any more)."""
        self._expire()
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
        self._expire()
        while len(self._entries) > self._max_entries or self.bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def pop(self, key: str) -> bool:
        """Forget ``key``; tell whether there was something to forget."""
        self._expire()
        return self._drop(key)

    def _drop(self, key: str) -> bool:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= len(entry[1])
        return entry is not None

    def _expire(self) -> None:
        """The entries stand in the order of their last use, so the idle ones are the first."""
        oldest = self._clock() - self._idle_seconds
        while self._entries:
            key, (used, _) = next(iter(self._entries.items()))
            if used >= oldest:
                return
            self._drop(key)
