"""Tests of the prefix cache: longest match, size limit, eviction and separation of owners."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers import prefix_cache
from aiochatstream.engines.transformers.prefix_cache import IDLE_SECONDS, SHARED, PrefixCache, common_length, key_of

TOKEN_BYTES = 16
"""Size of a token: keys and values of one layer, two heads, one float32 each."""

LIKE = [(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))]
ROW_LENGTH = 16

sequences = st.lists(st.integers(0, 2), min_size=1, max_size=8)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def cache_of(tokens: int, clock: Clock | None = None) -> PrefixCache:
    return PrefixCache(LIKE, tokens * TOKEN_BYTES, clock=clock or Clock())


def row_of(ids: list[int]) -> list[torch.Tensor]:
    """Return keys and values that identify the ids."""
    keys = torch.full((2, ROW_LENGTH, 1), torch.nan)
    keys[:, : len(ids), 0] = torch.tensor(ids, dtype=torch.float32)
    return [keys, -keys]


def store(cache: PrefixCache, ids: list[int], owner: str = "", shared_tokens: int = 0) -> None:
    cache.store(ids, row_of(ids), owner, shared_tokens)


def match_length(cache: PrefixCache, ids: list[int], owner: str = "", shared_tokens: int = 0) -> int:
    """Return the length of the match, and check its keys and values."""
    prefix, length = cache.match(ids, owner, shared_tokens)
    if prefix is not None:
        keys, values = row = row_of([])
        cache.load(prefix, length, row)
        assert keys[0, :length, 0].tolist() == keys[1, :length, 0].tolist() == ids[:length]
        assert torch.equal(values[:, :length], -keys[:, :length])
    return length


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2, 3], [1, 9, 3], 1), ([5], [6], 0)],
)
def test_common_length_is_that_of_the_common_prefix(first: list[int], second: list[int], length: int) -> None:
    assert common_length(key_of(first), key_of(second)) == length
    assert common_length(key_of(second), key_of(first)) == length


def test_prefixes_are_separate_for_each_owner() -> None:
    cache = cache_of(60)
    store(cache, [1, 2, 3], "anna")
    assert match_length(cache, [1, 2, 3], "anna") == 3
    assert match_length(cache, [1, 2, 3], "bob") == match_length(cache, [1, 2, 3]) == 0
    store(cache, [1, 2, 3, 4], "bob")
    assert len(cache) == 2, "a prefix of another owner was replaced"
    cache.forget("anna")
    assert match_length(cache, [1, 2, 3], "anna") == 0
    assert match_length(cache, [1, 2, 3], "bob") == 3


def test_the_shared_prefix_is_used_for_every_owner_up_to_the_shared_tokens() -> None:
    cache = cache_of(60)
    store(cache, [7, 7, 7], SHARED)
    for owner in ("anna", "bob"):
        assert match_length(cache, [7, 7, 7, 1], owner, shared_tokens=3) == 3
        assert match_length(cache, [7, 7, 7, 1], owner, shared_tokens=2) == 2
        assert match_length(cache, [7, 7, 7, 1], owner) == 0
    store(cache, [7, 7, 7, 1, 2], "anna", shared_tokens=3)
    assert cache.size == 5 * TOKEN_BYTES, "the shared prefix is stored twice"
    assert match_length(cache, [7, 7, 7, 1, 2], "anna", shared_tokens=3) == 5
    assert match_length(cache, [7, 7, 7, 1, 2], "bob", shared_tokens=3) == 3
    cache.forget("anna")
    assert match_length(cache, [7, 7, 7, 1, 2], "anna", shared_tokens=3) == 3
    for at in range(40):
        store(cache, [7, 7, 8, at], "carl", shared_tokens=2)
    assert match_length(cache, [7, 7, 7, 1], "bob", shared_tokens=3) == 3, "the shared prefix was evicted"


def test_an_empty_cache_and_an_empty_prompt_have_no_match() -> None:
    cache = cache_of(60)
    assert cache.match([1, 2]) == (None, 0)
    store(cache, [1, 2])
    assert cache.match([]) == (None, 0)


def test_the_longest_common_prefix_is_found() -> None:
    cache = cache_of(60)
    for ids in ([1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 7, 7, 7, 7]):
        store(cache, ids)
    assert match_length(cache, [1, 2, 3, 5, 9]) == 4
    assert match_length(cache, [1, 2, 7]) == 3
    assert match_length(cache, [2, 2, 7]) == 0


def test_a_sequence_replaces_the_one_that_it_continues() -> None:
    cache = cache_of(60)
    for ids in ([1, 2], [1, 9], [1, 2, 3], [1, 2, 3, 4], [1, 2]):
        store(cache, ids)
    assert len(cache) == 2
    assert cache.size == 6 * TOKEN_BYTES
    assert match_length(cache, [1, 9]) == 2
    assert match_length(cache, [1, 2, 3, 4]) == 4


def test_the_least_recently_used_prefix_is_evicted_and_a_match_is_a_use() -> None:
    cache = cache_of(6)
    for ids in ([1, 1], [2, 2], [3, 3]):
        store(cache, ids)
    assert match_length(cache, [1, 1, 5]) == 2
    store(cache, [4, 4])
    assert [match_length(cache, [first, first]) for first in (1, 2, 3, 4)] == [2, 0, 2, 2]


def test_a_sequence_larger_than_the_cache_is_not_stored_and_evicts_nothing() -> None:
    cache = cache_of(3)
    store(cache, [1, 1, 1])
    store(cache, [1, 1, 1, 1])
    assert match_length(cache, [1, 1, 1, 1]) == 3
    assert cache.size == 3 * TOKEN_BYTES


def test_prefixes_that_are_not_used_expire() -> None:
    clock = Clock()
    cache = cache_of(60, clock)
    store(cache, [7], SHARED)
    store(cache, [1, 1], "session:1")
    clock.now = IDLE_SECONDS - 1
    store(cache, [2, 2], "session:2")
    clock.now = IDLE_SECONDS + 1
    cache.sweep()
    assert cache.size == 3 * TOKEN_BYTES
    assert [match_length(cache, ids, owner) for ids, owner in (([1, 1], "session:1"), ([2, 2], "session:2"))] == [0, 2]
    assert match_length(cache, [7], shared_tokens=1) == 1


def test_the_number_of_prefixes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "MAX_PREFIXES", 100)
    cache = cache_of(100_000)
    store(cache, [0, 0])
    for at in range(1000):
        store(cache, [at, 1, 2])
        assert len(cache) <= 100
    assert cache.size == 300 * TOKEN_BYTES
    assert [match_length(cache, [at, 1, 2]) for at in (899, 900, 999)] == [0, 3, 3]


def test_a_match_compares_only_neighbouring_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def counted(first: bytes, second: bytes) -> int:
        compared.append(first)
        return common_length(first, second)

    monkeypatch.setattr(prefix_cache, "common_length", counted)
    cache = cache_of(100_000)
    for at in range(4000):
        store(cache, [at, 1, 2])
    compared.clear()
    assert match_length(cache, [3000, 1, 3]) == 2
    assert len(compared) <= 2


def test_a_failed_copy_does_not_lose_slots() -> None:
    cache = cache_of(6)
    store(cache, [1, 1])
    with pytest.raises(IndexError):
        cache.store([1, 1, 2, 2], [torch.zeros(2), torch.zeros(2)])
    assert cache.size == 0
    store(cache, [1, 2, 3, 4, 5, 6])
    assert match_length(cache, [1, 2, 3, 4, 5, 6]) == 6


def test_clear_frees_the_memory_and_later_prefixes_are_complete() -> None:
    cache = cache_of(10)
    store(cache, [7], SHARED)
    store(cache, [1, 2, 3])
    cache.clear(5)
    assert (cache.size, cache.reserved, match_length(cache, [7, 1], shared_tokens=1)) == (0, False, 0)
    store(cache, [1, 2, 3, 4, 5])
    assert match_length(cache, [1, 2, 3, 4, 5]) == 5


owners = st.sampled_from(["anna", "bob"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(sequences, owners), max_size=12), sequences, st.integers(0, 40), st.integers(0, 3))
def test_matches_are_exact_and_the_size_is_limited_for_any_sequences(
    stored: list[tuple[list[int], str]], prompt: list[int], capacity: int, shared_length: int
) -> None:
    """Matches are the longest common prefix with the sequences of the owner and with the shared prefix."""
    cache = cache_of(capacity)
    prefix = [1] * shared_length
    if shared_length:
        store(cache, prefix, SHARED)

    def shared(ids: list[int]) -> int:
        return common_length(key_of(prefix), key_of(ids))

    stored_prefix = shared_length if shared_length <= capacity else 0
    for ids, owner in stored:
        store(cache, ids, owner, shared(ids))
        assert cache.size <= capacity * TOKEN_BYTES
        fits = len(ids) - (shared(ids) if stored_prefix else 0) <= capacity - stored_prefix
        assert not fits or match_length(cache, ids, owner, shared(ids)) == len(ids)
    for owner in ("anna", "bob"):
        length = match_length(cache, prompt, owner, shared(prompt))
        own = [common_length(key_of(ids), key_of(prompt)) for ids, other in stored if other == owner]
        longest = max([*own, shared(prompt) if stored_prefix else 0])
        assert length <= longest
        if sum(len(ids) for ids, _ in stored) + shared_length <= capacity:
            assert length == longest
    # all slots are distinct
    prefixes = [match for ids, owner in stored if (match := cache.match(ids, owner)[0]) is not None]
    slots = {slot for prefix in prefixes for slot in prefix.slots[prefix.borrowed_slots :].tolist()}
    assert cache.size == (len(slots) + stored_prefix) * TOKEN_BYTES
    for owner in ("anna", "bob"):
        cache.forget(owner)
    assert cache.size == stored_prefix * TOKEN_BYTES
