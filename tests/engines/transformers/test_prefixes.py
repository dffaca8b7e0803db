"""What is kept of earlier sequences: the longest common beginning is found, the budget holds, the oldest goes first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers.prefixes import PrefixPool, Tokens, common

BYTES = 16
"""That one token takes here: keys and values of one layer, two heads, one float32 each."""

sequences = st.lists(st.integers(0, 2), min_size=1, max_size=8)


def tokens_of(ids: list[int]) -> Tokens:
    """Keys and values that tell which ids they are of."""
    keys = torch.tensor([ids, ids], dtype=torch.float32)[..., None]
    return [(keys, -keys)]


def put(pool: PrefixPool, ids: list[int]) -> None:
    pool.put(ids, tokens_of(ids))


def matched(pool: PrefixPool, ids: list[int]) -> int:
    tokens, same = pool.match(ids)
    if same:
        assert tokens[0][0][0, :same, 0].tolist() == ids[:same]
    return same


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2, 3], [1, 9, 3], 1), ([5], [6], 0)],
)
def test_common_counts_from_the_beginning(first: list[int], second: list[int], length: int) -> None:
    assert common(np.asarray(first), np.asarray(second)) == length
    assert common(np.asarray(second), np.asarray(first)) == length


def test_what_one_owner_has_is_nobody_elses() -> None:
    pool = PrefixPool(1000)
    pool.put([1, 2, 3], tokens_of([1, 2, 3]), "anna")
    assert pool.match([1, 2, 3], "anna")[1] == 3
    assert pool.match([1, 2, 3], "bob") == pool.match([1, 2, 3]) == ([], 0)
    assert pool.worth([1, 2], 32, "bob")
    assert not pool.worth([1, 2], 32, "anna")
    pool.put([1, 2, 3, 4], tokens_of([1, 2, 3, 4]), "bob")
    assert len(pool) == 2, "what it continues is another's, and stays"


def test_an_empty_pool_and_an_empty_prompt_match_nothing() -> None:
    pool = PrefixPool(1000)
    assert pool.match([1, 2]) == ([], 0)
    put(pool, [1, 2])
    assert pool.match([]) == ([], 0)


def test_of_several_the_longest_common_beginning_is_found() -> None:
    pool = PrefixPool(1000)
    for ids in ([1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 7, 7, 7, 7]):
        put(pool, ids)
    assert matched(pool, [1, 2, 3, 5, 9]) == 4
    assert matched(pool, [1, 2, 7]) == 3
    assert matched(pool, [2, 2, 7]) == 0


def test_a_sequence_takes_the_place_of_those_that_it_continues() -> None:
    pool = PrefixPool(1000)
    for ids in ([1, 2], [1, 9], [1, 2, 3], [1, 2, 3, 4]):
        put(pool, ids)
    assert len(pool) == 2
    assert pool.size == 6 * BYTES
    assert matched(pool, [1, 9]) == 2


def test_the_least_recently_used_goes_first_and_a_match_is_a_use() -> None:
    pool = PrefixPool(6 * BYTES)
    for ids in ([1, 1], [2, 2], [3, 3]):
        put(pool, ids)
    assert matched(pool, [1, 1, 5]) == 2
    put(pool, [4, 4])
    assert [matched(pool, [first, first]) for first in (1, 2, 3, 4)] == [2, 0, 2, 2]


def test_what_is_larger_than_the_whole_budget_is_not_kept_and_pushes_nothing_out() -> None:
    pool = PrefixPool(3 * BYTES)
    put(pool, [1, 1, 1])
    put(pool, [1, 1, 1, 1])
    assert matched(pool, [1, 1, 1, 1]) == 3
    assert pool.size == 3 * BYTES


@pytest.mark.parametrize(
    ("ids", "worth"), [([1, 2], False), ([1, 2, 3], False), ([1, 2, 3, 4], True), ([1, 3], True), ([1] * 11, False)]
)
def test_only_what_is_new_and_fits_is_worth_a_copy(ids: list[int], worth: bool) -> None:
    pool = PrefixPool(10 * BYTES)
    put(pool, [1, 2, 3])
    assert pool.worth(ids, BYTES * len(ids)) is worth


@settings(max_examples=60, deadline=None)
@given(st.lists(sequences, max_size=12), sequences, st.integers(0, 40))
def test_whatever_is_put_the_budget_holds_and_a_match_is_exact(
    kept: list[list[int]], wanted: list[int], room: int
) -> None:
    pool = PrefixPool(room * BYTES)
    for ids in kept:
        put(pool, ids)
        assert pool.size <= room * BYTES
        assert len(ids) > room or matched(pool, ids) == len(ids)
    same = matched(pool, wanted)
    longest = max((common(np.asarray(ids), np.asarray(wanted)) for ids in kept), default=0)
    assert same <= longest
    if sum(map(len, kept)) <= room:
        assert same == longest


@settings(max_examples=40, deadline=None)
@given(st.lists(sequences, min_size=1, max_size=12))
def test_its_size_is_that_of_what_can_still_be_found(kept: list[list[int]]) -> None:
    pool = PrefixPool(20 * BYTES)
    for ids in kept:
        put(pool, ids)
    assert pool.size == sum(one.size for one in pool._kept)
    assert all(one.size == BYTES * len(one.ids) for one in pool._kept)
