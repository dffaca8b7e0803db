"""Token buckets: how often something may happen, for each who does it."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float
    empty_told: bool = False


logger = logging.getLogger(__name__)


class TokenBuckets:
    """Allows each key ``capacity`` times at once, and again as the time goes by: ``capacity`` times in ``seconds``.

    :param max_keys: how many keys are known; the least recently used is forgotten first.
    :param on_empty: told a key that is refused; once, until its bucket has been full again.
    :param clock: seconds, monotonic; for tests.
    """

    def __init__(
        self,
        *,
        capacity: int,
        seconds: float,
        max_keys: int = 10_000,
        on_empty: Callable[[str], object] = lambda key: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity = capacity
        self._per_second = capacity / seconds
        self._max_keys = max_keys
        self._on_empty = on_empty
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str) -> bool:
        """Take a token of ``key``'s bucket; False when there is none."""
        allowed = self.allows(key)
        self._buckets[key].tokens -= allowed
        return allowed

    def allows(self, key: str) -> bool:
        """Return whether ``key``'s bucket has a token."""
        now = self._clock()
        bucket = self._buckets.pop(key, None) or _Bucket(self._capacity, now)
        self._buckets[key] = bucket
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        bucket.tokens += (now - bucket.filled_at) * self._per_second
        bucket.filled_at = now
        if bucket.tokens >= self._capacity:
            bucket.tokens, bucket.empty_told = self._capacity, False
        if bucket.tokens >= 1:
            return True
        if not bucket.empty_told:
            bucket.empty_told = True
            self._on_empty(key)
        return False


ATTEMPTS, ATTEMPT_SECONDS = 30, 60.0
"""Attempts of one address at the roles' phrases in that time."""

TYPED = "Messages from %s are not compared with the roles' phrases for now: more than %d in %g seconds."
SENT = "Agents at %s are refused for now: more than %d wrong phrases in %g seconds."


def phrase_attempts(clock: Callable[[], float] = time.monotonic, *, warning: str = TYPED) -> TokenBuckets:
    """Return a bucket of attempts for each client address. ``warning`` is logged when one is empty."""

    def warn(address: str) -> None:
        logger.warning(warning, address, ATTEMPTS, ATTEMPT_SECONDS)

    return TokenBuckets(capacity=ATTEMPTS, seconds=ATTEMPT_SECONDS, on_empty=warn, clock=clock)
