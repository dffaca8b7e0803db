"""The time that answers hold their slots, from which Retry-After is estimated."""

from __future__ import annotations

import math

ASSUMED_SECONDS = 5.0
"""Assumed seconds of an answer, until the first answer has ended."""

SMOOTHING = 0.2
"""Weight of the newest holding time in the running mean."""

MAX_RETRY_AFTER = 600


class HoldingTime:
    """Running mean of the seconds that answers hold their slots."""

    def __init__(self) -> None:
        self._mean: float | None = None

    def add(self, seconds: float) -> None:
        """Add the time of an answer."""
        mean = seconds if self._mean is None else self._mean
        self._mean = mean + SMOOTHING * (seconds - mean)

    def retry_after(self, waiting: int, slots: int) -> int:
        """Return whole seconds, 1 to :data:`MAX_RETRY_AFTER`, until the next request is likely to get a slot.

        :param waiting: number of requests before it.
        :param slots: number of slots, at least 1.
        """
        mean = ASSUMED_SECONDS if self._mean is None else self._mean
        return min(MAX_RETRY_AFTER, max(1, math.ceil(mean * (waiting + 1) / slots)))
