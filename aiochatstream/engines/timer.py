"""The time, and waits that a cancel ends."""

from __future__ import annotations

import time
from collections.abc import Iterator

from aiochatstream.engines.base import Delta

PART_SECONDS = 0.04


class Timer:
    """Seconds of a clock that never jumps, and waiting for one of its moments. Tests have one of their own."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block the thread."""
        time.sleep(seconds)

    def until(self, moment: float) -> Iterator[Delta]:
        """Wait for ``moment``, with an empty Delta between the parts of the wait, where a cancel takes effect."""
        while (left := moment - self.now()) > 0:
            self.sleep(min(left, PART_SECONDS))
            yield Delta()
