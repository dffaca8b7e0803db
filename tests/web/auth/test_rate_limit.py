"""Token buckets: how many at once, how many in a time, and how much is remembered."""

from __future__ import annotations

from aiochatstream.web.auth.rate_limit import TokenBuckets


def test_a_key_has_its_capacity_at_once_and_again_as_time_goes_by() -> None:
    now = 0.0
    buckets = TokenBuckets(capacity=3, seconds=60, clock=lambda: now)
    assert [buckets.take("a") for _ in range(5)] == [True, True, True, False, False]
    assert buckets.take("b")
    now = 20.0
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    now = 1e6
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]


def test_asking_whether_there_is_a_token_takes_none() -> None:
    buckets = TokenBuckets(capacity=1, seconds=60, clock=lambda: 0.0)
    assert [buckets.allows("a") for _ in range(3)] == [True] * 3
    assert buckets.take("a")
    assert not buckets.allows("a")


def test_an_empty_bucket_is_told_once_until_it_has_been_full_again() -> None:
    now, told = 0.0, []
    buckets = TokenBuckets(capacity=2, seconds=2, on_empty=told.append, clock=lambda: now)
    for _ in range(5):
        buckets.take("a")
    assert told == ["a"]
    now = 1.0
    assert [buckets.take("a") for _ in range(3)] == [True, False, False]
    assert told == ["a"]
    now = 9.0
    for _ in range(3):
        buckets.take("a")
    assert told == ["a", "a"]


def test_no_more_keys_are_known_than_said_and_the_least_recently_used_goes() -> None:
    buckets = TokenBuckets(capacity=1, seconds=60, max_keys=2, clock=lambda: 0.0)
    for key in ("a", "b", "a", "c"):
        buckets.take(key)
    assert len(buckets) == 2
    assert not buckets.take("a")
    assert buckets.take("b")  # forgotten, so full again
