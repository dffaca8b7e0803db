"""A clock, and waits that can be cancelled."""

from __future__ import annotations

import time
from collections.abc import Iterator

from aiochatstream.engines.base import Delta

MAX_SLEEP_SECONDS = 0.04


class Timer:
    """A monotonic clock. Tests replace it."""

    def now(self) -> float:
        """Return the current time in seconds since an arbitrary moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block the thread."""
        time.sleep(seconds)

    def wait_until(self, moment: float) -> Iterator[Delta]:
        """Wait until ``moment`` and yield empty deltas in between, so that the answer can be cancelled."""
        while (left := moment - self.now()) > 0:
            self.sleep(min(left, MAX_SLEEP_SECONDS))
            yield Delta()
