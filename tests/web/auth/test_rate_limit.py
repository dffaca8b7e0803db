"""Tests of the token buckets: capacity, refill, and the number of keys."""

from __future__ import annotations

from aiochatstream.web.auth.rate_limit import TokenBuckets


def test_a_bucket_starts_full_and_refills_over_time() -> None:
    now = 0.0
    buckets = TokenBuckets(capacity=3, seconds=60, clock=lambda: now)
    assert [buckets.take("a") for _ in range(5)] == [True, True, True, False, False]
    assert buckets.take("b")
    now = 20.0
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    now = 1e6
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]


def test_allows_takes_no_token() -> None:
    buckets = TokenBuckets(capacity=1, seconds=60, clock=lambda: 0.0)
    assert [buckets.allows("a") for _ in range(3)] == [True] * 3
    assert buckets.take("a")
    assert not buckets.allows("a")


def test_on_empty_is_called_once_until_the_bucket_is_full_again() -> None:
    now, keys = 0.0, list[str]()
    buckets = TokenBuckets(capacity=2, seconds=2, on_empty=keys.append, clock=lambda: now)
    for _ in range(5):
        buckets.take("a")
    assert keys == ["a"]
    now = 1.0
    assert [buckets.take("a") for _ in range(3)] == [True, False, False]
    assert keys == ["a"]
    now = 9.0
    for _ in range(3):
        buckets.take("a")
    assert keys == ["a", "a"]


def test_the_least_recently_used_key_is_dropped() -> None:
    buckets = TokenBuckets(capacity=1, seconds=60, max_keys=2, clock=lambda: 0.0)
    for key in ("a", "b", "a", "c"):
        buckets.take(key)
    assert len(buckets) == 2
    assert not buckets.take("a")
    assert buckets.take("b")  # dropped, so the bucket is full again
