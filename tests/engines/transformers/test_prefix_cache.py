"""What is kept of earlier sequences: the longest common beginning is found, the budget holds, the oldest goes first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers import prefix_cache
from aiochatstream.engines.transformers.prefix_cache import SHARED, IDLE_SECONDS, PrefixCache, common_length, key_of

BYTES = 16
"""That one token takes here: keys and values of one layer, two heads, one float32 each."""

LIKE = [(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))]
LONGEST = 16

sequences = st.lists(st.integers(0, 2), min_size=1, max_size=8)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def pool_of(tokens: int, clock: Clock | None = None) -> PrefixCache:
    return PrefixCache(LIKE, tokens * BYTES, clock=clock or Clock())


def row_of(ids: list[int]) -> list[torch.Tensor]:
    """Keys and values of a row that tell which ids they are of."""
    keys = torch.full((2, LONGEST, 1), torch.nan)
    keys[:, : len(ids), 0] = torch.tensor(ids, dtype=torch.float32)
    return [keys, -keys]


def put(pool: PrefixCache, ids: list[int], owner: str = "", shared: int = 0) -> None:
    pool.put(ids, row_of(ids), owner, shared)


def matched(pool: PrefixCache, ids: list[int], owner: str = "", shared: int = 0) -> int:
    prefix, same = pool.match(ids, owner, shared)
    if prefix is not None:
        keys, values = row = row_of([])
        pool.read(prefix, same, row)
        assert keys[0, :same, 0].tolist() == keys[1, :same, 0].tolist() == ids[:same]
        assert torch.equal(values[:, :same], -keys[:, :same])
    return same


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2, 3], [1, 9, 3], 1), ([5], [6], 0)],
)
def test_common_counts_from_the_beginning(first: list[int], second: list[int], length: int) -> None:
    assert common(key_of(first), key_of(second)) == length
    assert common(key_of(second), key_of(first)) == length


def test_what_one_owner_has_is_nobody_elses() -> None:
    pool = pool_of(60)
    put(pool, [1, 2, 3], "anna")
    assert matched(pool, [1, 2, 3], "anna") == 3
    assert matched(pool, [1, 2, 3], "bob") == matched(pool, [1, 2, 3]) == 0
    put(pool, [1, 2, 3, 4], "bob")
    assert len(pool) == 2, "what it continues is another's, and stays"
    pool.forget("anna")
    assert matched(pool, [1, 2, 3], "anna") == 0
    assert matched(pool, [1, 2, 3], "bob") == 3


def test_the_head_serves_every_owner_as_far_as_the_prompt_may_share_it() -> None:
    pool = pool_of(60)
    put(pool, [7, 7, 7], SHARED)
    for owner in ("anna", "bob"):
        assert matched(pool, [7, 7, 7, 1], owner, shared=3) == 3
        assert matched(pool, [7, 7, 7, 1], owner, shared=2) == 2
        assert matched(pool, [7, 7, 7, 1], owner) == 0
    put(pool, [7, 7, 7, 1, 2], "anna", shared=3)
    assert pool.size == 5 * BYTES, "the head is held once"
    assert matched(pool, [7, 7, 7, 1, 2], "anna", shared=3) == 5
    assert matched(pool, [7, 7, 7, 1, 2], "bob", shared=3) == 3
    pool.forget("anna")
    assert matched(pool, [7, 7, 7, 1, 2], "anna", shared=3) == 3
    for at in range(40):
        put(pool, [7, 7, 8, at], "carl", shared=2)
    assert matched(pool, [7, 7, 7, 1], "bob", shared=3) == 3, "nobody pushes the head out"


def test_an_empty_pool_and_an_empty_prompt_match_nothing() -> None:
    pool = pool_of(60)
    assert pool.match([1, 2]) == (None, 0)
    put(pool, [1, 2])
    assert pool.match([]) == (None, 0)


def test_of_several_the_longest_common_beginning_is_found() -> None:
    pool = pool_of(60)
    for ids in ([1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 7, 7, 7, 7]):
        put(pool, ids)
    assert matched(pool, [1, 2, 3, 5, 9]) == 4
    assert matched(pool, [1, 2, 7]) == 3
    assert matched(pool, [2, 2, 7]) == 0


def test_a_sequence_takes_the_place_of_the_one_that_it_continues() -> None:
    pool = pool_of(60)
    for ids in ([1, 2], [1, 9], [1, 2, 3], [1, 2, 3, 4], [1, 2]):
        put(pool, ids)
    assert len(pool) == 2
    assert pool.size == 6 * BYTES
    assert matched(pool, [1, 9]) == 2
    assert matched(pool, [1, 2, 3, 4]) == 4


def test_the_least_recently_used_goes_first_and_a_match_is_a_use() -> None:
    pool = pool_of(6)
    for ids in ([1, 1], [2, 2], [3, 3]):
        put(pool, ids)
    assert matched(pool, [1, 1, 5]) == 2
    put(pool, [4, 4])
    assert [matched(pool, [first, first]) for first in (1, 2, 3, 4)] == [2, 0, 2, 2]


def test_what_is_larger_than_the_whole_budget_is_not_kept_and_pushes_nothing_out() -> None:
    pool = pool_of(3)
    put(pool, [1, 1, 1])
    put(pool, [1, 1, 1, 1])
    assert matched(pool, [1, 1, 1, 1]) == 3
    assert pool.size == 3 * BYTES


def test_prefixes_that_nobody_used_for_long_are_dropped() -> None:
    clock = Clock()
    pool = pool_of(60, clock)
    put(pool, [7], SHARED)
    put(pool, [1, 1], "session:1")
    clock.now = IDLE_SECONDS - 1
    put(pool, [2, 2], "session:2")
    clock.now = IDLE_SECONDS + 1
    pool.sweep()
    assert pool.size == 3 * BYTES
    assert [matched(pool, ids, owner) for ids, owner in (([1, 1], "session:1"), ([2, 2], "session:2"))] == [0, 2]
    assert matched(pool, [7], shared=1) == 1


def test_many_short_prefixes_are_bounded_in_number_and_share_one_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "MAX_PREFIXES", 100)
    pool = pool_of(100_000)
    put(pool, [0, 0])
    memory = [one.data_ptr() for one in pool._memory]
    for at in range(1000):
        put(pool, [at, 1, 2])
        assert len(pool) <= 100
    assert pool.size == 300 * BYTES
    assert [one.data_ptr() for one in pool._memory] == memory
    assert [matched(pool, [at, 1, 2]) for at in (899, 900, 999)] == [0, 3, 3]


def test_a_look_up_compares_as_few_with_many_prefixes_as_with_few(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def counting(first: bytes, second: bytes) -> int:
        compared.append(first)
        return common(first, second)

    monkeypatch.setattr(prefix_cache, "common", counting)
    pool = pool_of(100_000)
    for at in range(4000):
        put(pool, [at, 1, 2])
    compared.clear()
    assert matched(pool, [3000, 1, 3]) == 2
    assert len(compared) <= 2


def test_a_copy_that_fails_loses_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(6)
    put(pool, [1, 1])
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_memory", [None, None])
        with pytest.raises(AttributeError):
            put(pool, [1, 1, 2, 2])
    assert pool.size == 0
    put(pool, [1, 2, 3, 4, 5, 6])
    assert matched(pool, [1, 2, 3, 4, 5, 6]) == 6


def test_clear_gives_the_memory_back_and_what_is_kept_later_is_whole() -> None:
    pool = pool_of(10)
    put(pool, [7], SHARED)
    put(pool, [1, 2, 3])
    pool.clear(5)
    assert (pool.size, pool.reserved, matched(pool, [7, 1], shared=1)) == (0, False, 0)
    put(pool, [1, 2, 3, 4, 5])
    assert matched(pool, [1, 2, 3, 4, 5]) == 5


owners = st.sampled_from(["anna", "bob"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(sequences, owners), max_size=12), sequences, st.integers(0, 40), st.integers(0, 3))
def test_whatever_is_put_the_budget_holds_and_a_match_is_exact(
    kept: list[tuple[list[int], str]], wanted: list[int], room: int, head: int
) -> None:
    """Of an owner, the longest common beginning is found; nothing of another's beyond the head is."""
    pool = pool_of(room)
    beginning = [1] * head
    if head:
        put(pool, beginning, SHARED)

    def shared(ids: list[int]) -> int:
        return common(key_of(beginning), key_of(ids))

    held = head if head <= room else 0
    for ids, owner in kept:
        put(pool, ids, owner, shared(ids))
        assert pool.size <= room * BYTES
        fits = len(ids) - (shared(ids) if held else 0) <= room - held
        assert not fits or matched(pool, ids, owner, shared(ids)) == len(ids)
    for owner in ("anna", "bob"):
        same = matched(pool, wanted, owner, shared(wanted))
        own = [common(key_of(ids), key_of(wanted)) for ids, other in kept if other == owner]
        longest = max([*own, shared(wanted) if held else 0])
        assert same <= longest
        if sum(len(ids) for ids, _ in kept) + head <= room:
            assert same == longest
    in_use = np.concatenate([np.empty(0), *(one.slots[one.borrowed :] for one in pool._prefixes)])
    assert len(set(in_use)) == len(in_use)
    assert pool.size == (len(in_use) + held) * BYTES
    for owner in ("anna", "bob"):
        pool.forget(owner)
    assert pool.size == held * BYTES
