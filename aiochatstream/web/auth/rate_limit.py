"""Token-bucket rate limiting, per key."""

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
    is_reported: bool = False


logger = logging.getLogger(__name__)


class TokenBuckets:
    """A token bucket for each key. A bucket holds ``capacity`` tokens and refills completely in ``seconds``.

    :param max_keys: maximum number of buckets; the least recently used is dropped.
    :param on_empty: called with a key whose bucket is empty; again only after the bucket has been full.
    :param clock: monotonic clock in seconds, replaced in tests.
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
        """Take a token from the bucket of ``key``; return False if it is empty."""
        allowed = self.allows(key)
        self._buckets[key].tokens -= allowed
        return allowed

    def allows(self, key: str) -> bool:
        """Return True if the bucket of ``key`` has a token."""
        now = self._clock()
        bucket = self._buckets.pop(key, None) or _Bucket(self._capacity, now)
        self._buckets[key] = bucket
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        bucket.tokens += (now - bucket.filled_at) * self._per_second
        bucket.filled_at = now
        if bucket.tokens >= self._capacity:
            bucket.tokens, bucket.is_reported = self._capacity, False
        if bucket.tokens >= 1:
            return True
        if not bucket.is_reported:
            bucket.is_reported = True
            self._on_empty(key)
        return False


ATTEMPTS, ATTEMPT_SECONDS = 30, 60.0
"""Pass-phrase attempts of each address, in that many seconds."""

TYPED_WARNING = "Too many pass-phrase attempts from %s (over %d in %g s); ignoring phrases from this address for now."
HEADER_WARNING = "Too many wrong phrases of agents at %s (over %d in %g s); refusing agents at this address for now."


def phrase_attempts(clock: Callable[[], float] = time.monotonic, *, warning: str = TYPED_WARNING) -> TokenBuckets:
    """Return buckets of pass-phrase attempts by client address. ``warning`` is logged when a bucket is empty."""

    def warn(address: str) -> None:
        logger.warning(warning, address, ATTEMPTS, ATTEMPT_SECONDS)

    return TokenBuckets(capacity=ATTEMPTS, seconds=ATTEMPT_SECONDS, on_empty=warn, clock=clock)
