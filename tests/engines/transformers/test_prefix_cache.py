"""Tests of the prefix cache: longest match, eviction, separation of owners and the cost of a lookup."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers import prefix_cache
from aiochatstream.engines.transformers.prefix_cache import (
    IDLE_SECONDS,
    SHARED,
    CachedBlock,
    PrefixMatch,
    common_length,
    key_of,
)
from tests.engines.transformers.prefix_cache_harness import (
    BLOCK_SIZE,
    PREFIX,
    Memory,
    blocks_for,
    common,
    owners,
    sequences,
)


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2, 3], [1, 9, 3], 1), ([5], [6], 0)],
)
def test_common_length_is_that_of_the_common_prefix(first: list[int], second: list[int], length: int) -> None:
    assert common(first, second) == common(second, first) == length


def test_prefixes_are_separate_for_each_owner() -> None:
    memory = Memory(20)
    memory.store([1, 2, 3], "anna")
    assert memory.match_length([1, 2, 3], "anna") == 3
    assert memory.match_length([1, 2, 3], "bob") == memory.match_length([1, 2, 3]) == 0
    memory.store([1, 2, 3, 4], "bob")
    assert memory.cache.unused == 4, "a block of another owner was used"
    memory.cache.forget("anna")
    assert memory.match_length([1, 2, 3], "anna") == 0
    assert memory.match_length([1, 2, 3], "bob") == 3
    assert memory.cache.unused == 2


def test_forgotten_blocks_do_not_accumulate_and_all_others_are_evicted_in_order() -> None:
    memory = Memory(8)
    memory.store([1, 1, 1], "bob")
    for at in range(100):
        memory.store([at] * 8, "anna")
        memory.cache.forget("anna")
        assert len(memory.cache._heap) <= 2 * memory.pool.count
    memory.store([2, 2, 2], "bob")
    assert memory.match_length([1, 1, 1], "bob") == 3
    memory.pool.release(memory.cache.reserve(6))
    assert memory.match_length([1, 1, 1], "bob") == 0
    assert memory.match_length([2, 2, 2], "bob") == 3


def test_the_shared_prefix_is_stored_once_and_used_for_every_owner_up_to_the_shared_tokens() -> None:
    memory = Memory(40)
    memory.store([7, 7, 7, 7, 7], SHARED)
    for owner in ("anna", "bob"):
        assert memory.match_length([7, 7, 7, 7, 7, 1], owner, shared_tokens=5) == 5
        assert memory.match_length([7, 7, 7, 7, 7, 1], owner, shared_tokens=3) == 3
        assert memory.match_length([7, 7, 7, 7, 7, 1], owner) == 0
        memory.store([7, 7, 7, 7, 7, 1, 2], owner, shared_tokens=5)
        assert memory.match_length([7, 7, 7, 7, 7, 1, 2], owner, shared_tokens=5) == 7
    assert memory.cache.unused == 3 + 2 * 2, "complete blocks of the shared prefix are stored twice"
    assert memory.match_length([7, 7, 7, 7, 7, 1, 2], "carl", shared_tokens=5) == 5
    memory.cache.forget("anna")
    assert memory.match_length([7, 7, 7, 7, 7, 1, 2], "anna", shared_tokens=5) == 5
    assert memory.match_length([7, 7, 7, 7, 7, 1, 2], "bob", shared_tokens=5) == 7


def test_the_shared_prefix_is_evicted_last_and_cached_again_by_a_later_answer() -> None:
    memory = Memory(8)
    memory.store([7, 7, 7, 7], SHARED)
    for at in range(20):
        memory.store([7, 7, 7, 7, at, at], "anna", shared_tokens=4)
        memory.store([at, 9, 9], "bob")
    assert memory.match_length([7, 7, 7, 7, 1], "bob", shared_tokens=4) == 4
    memory.pool.release(memory.cache.reserve(7))
    assert memory.match_length([7, 7, 7, 7, 1], "bob", shared_tokens=4) == 2, "the last block is evicted first"
    memory.pool.release(memory.cache.reserve(8))
    assert memory.match_length([7, 7, 7, 7, 1], "bob", shared_tokens=4) == 0
    memory.store([7, 7, 7, 7, 3], "anna", shared_tokens=4)
    assert memory.match_length([7, 7, 7, 7, 1], "bob", shared_tokens=4) == 4
    memory.clock.now = IDLE_SECONDS + 1
    memory.cache.sweep()
    assert memory.cache.unused == 2, "only the shared blocks do not expire"


def test_an_empty_cache_and_an_empty_prompt_have_no_match() -> None:
    memory = Memory(20)
    assert memory.match([1, 2]) == PrefixMatch([], None, 0)
    memory.store([1, 2])
    assert memory.match([]).used == []


def test_the_longest_common_prefix_is_matched() -> None:
    memory = Memory(20)
    for ids in ([1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 7, 7, 7, 7]):
        memory.store(ids)
    assert memory.match_length([1, 2, 3, 5, 9]) == 4
    assert memory.match_length([1, 2, 3, 9]) == 3
    assert memory.match_length([1, 2, 7]) == 3
    assert memory.match_length([1, 9]) == 1
    assert memory.match_length([2, 2, 7]) == 0


def test_a_sequence_replaces_the_one_that_it_continues() -> None:
    memory = Memory(20)
    for ids in ([1, 2, 5], [1, 9], [1, 2, 5, 6], [1, 2, 5, 6, 3], [1, 2, 5], [1]):
        memory.store(ids)
    assert memory.cache.unused == 4, "[1, 2], [1, 9], [5, 6] and [3]"
    assert memory.pool.free == 16
    assert memory.match_length([1, 9]) == 2
    assert memory.match_length([1, 2, 5, 6, 3]) == 5


@pytest.mark.parametrize("use", ["match", "answer"])
def test_the_least_recently_used_block_is_evicted_first(use: str) -> None:
    memory = Memory(8)
    for first in (1, 2, 3):
        memory.store([first] * 4)
    if use == "match":
        memory.use([1] * 5)
    else:
        memory.store([1] * 4)
    for count, lengths in ((3, [4, 2, 4]), (4, [4, 0, 4]), (5, [4, 0, 2]), (7, [2, 0, 0])):
        memory.pool.release(memory.cache.reserve(count))
        assert [memory.match_length([first] * 4) for first in (1, 2, 3)] == lengths


def test_blocks_in_use_are_not_evicted() -> None:
    memory = Memory(4, max_blocks=1)
    memory.store([1, 1])
    match = memory.match([1, 1, 2])
    memory.cache.acquire(match.used)
    memory.store([2, 2])
    assert memory.cache.unused == 1
    memory.clock.now = 2 * IDLE_SECONDS
    memory.cache.sweep()
    assert not memory.cache.can_reserve(4)
    assert sorted([*memory.cache.reserve(3), match.blocks[0].number]) == [0, 1, 2, 3]
    memory.cache.release(match.used)
    assert memory.match_length([1, 1]) == 2


def test_a_sequence_larger_than_the_cache_is_stored_up_to_its_size() -> None:
    memory = Memory(20, max_blocks=3)
    memory.store([1] * 4)
    memory.store([2] * 9)
    assert memory.cache.unused == 3
    assert memory.match_length([2] * 9) == 6
    assert memory.match_length([1] * 4) == 0
    assert memory.pool.free == 17


def test_a_cache_without_capacity_stores_nothing() -> None:
    memory = Memory(4, max_blocks=0)
    memory.store([1, 1, 1])
    assert (memory.cache.unused, memory.pool.free, memory.match_length([1, 1, 1])) == (0, 4, 0)


def test_blocks_that_are_not_used_expire() -> None:
    memory = Memory(20)
    memory.store([7, 7], SHARED)
    memory.store([1, 1, 1], "session:1")
    memory.clock.now = IDLE_SECONDS - 1
    memory.store([2, 2], "session:2")
    memory.clock.now = IDLE_SECONDS + 1
    memory.cache.sweep()
    assert memory.cache.unused == 2
    assert [memory.match_length(ids, owner) for ids, owner in (([1, 1], "session:1"), ([2, 2], "session:2"))] == [0, 2]
    assert memory.match_length([7, 7], shared_tokens=2) == 2


def test_forgetting_an_owner_frees_blocks_of_running_requests_at_their_end() -> None:
    memory = Memory(10)
    memory.store([1, 1, 2, 2, 3], "anna")
    match = memory.match([1, 1, 2, 2, 9], "anna")
    memory.cache.acquire(match.used)
    memory.cache.forget("anna")
    assert (memory.cache.unused, memory.pool.free) == (0, 8)
    assert memory.match_length([1, 1, 2, 2, 9], "anna") == 0
    memory.store([1, 1, 2, 2], "anna")
    memory.cache.release(match.used)
    assert (memory.cache.unused, memory.pool.free) == (2, 8)
    assert memory.match_length([1, 1, 2, 2, 9], "anna") == 4


def test_rows_with_states_continue_only_where_a_sequence_has_ended() -> None:
    memory = Memory(20, snapshots=2)
    memory.store([1, 2, 3])
    memory.store([1, 2, 4, 4, 5])
    assert memory.match_length([1, 2, 3, 9]) == 3
    assert memory.match_length([1, 2, 4, 4, 5, 9]) == 5
    assert memory.match_length([1, 2, 4, 4, 9]) == memory.match_length([1, 2]) == 0
    memory.match([1, 2, 3])
    memory.store([6])
    assert memory.match_length([1, 2, 4, 4, 5, 9]) == 0, "the least recently used states are kept"
    assert [memory.match_length([1, 2, 3, 9]), memory.match_length([6, 9])] == [3, 1]


def test_states_of_a_sequence_are_not_those_of_a_longer_one() -> None:
    memory = Memory(20, snapshots=1)
    memory.store([1, 2, 3, 4])
    memory.store([5])  # drops the only other states
    memory.store([1, 2, 3])
    assert memory.match_length([1, 2, 3, 4, 5]) == 0


def test_rows_with_states_continue_from_the_shared_prefix_if_another_sequence_is_more_similar() -> None:
    memory = Memory(20, snapshots=2)
    memory.store(PREFIX, SHARED)
    memory.store([*PREFIX, 5, 6], "anna", shared_tokens=len(PREFIX))
    assert memory.match_length([*PREFIX, 5, 7], "anna", shared_tokens=len(PREFIX)) == len(PREFIX)


class CountedKey(bytes):
    """A key that counts its comparisons."""

    comparisons = 0

    def __getitem__(self, part: Any) -> Any:
        return CountedKey(super().__getitem__(part))

    def __lt__(self, other: bytes) -> bool:
        CountedKey.comparisons += 1
        return super().__lt__(other)

    def __gt__(self, other: bytes) -> bool:
        CountedKey.comparisons += 1
        return super().__gt__(other)

    def __eq__(self, other: object) -> bool:
        CountedKey.comparisons += 1
        return super().__eq__(other)

    def __hash__(self) -> int:
        return super().__hash__()


@pytest.mark.parametrize("branches", [10, 10_000])
def test_a_lookup_among_many_sequences_compares_few_keys(monkeypatch: pytest.MonkeyPatch, branches: int) -> None:
    compared = []

    def counted_length(first: bytes, second: bytes) -> int:
        compared.append(first)
        return common_length(first, second)

    monkeypatch.setattr(prefix_cache, "common_length", counted_length)
    memory = Memory(branches + 1)
    used: list[CachedBlock] = []
    for at, block in enumerate([None, *memory.cache.reserve(branches)]):
        if block is None:
            memory.store([5, 5], "anna")
            used = [*memory.match([5, 5], "anna").blocks]
            memory.cache.acquire(used)
        else:
            memory.write([block], 1, [5, 5, at * 2, 0])
            memory.cache.insert([5, 5, at * 2, 0], used, [block], "anna")
    compared.clear()
    monkeypatch.setattr(prefix_cache, "key_of", lambda ids: CountedKey(key_of(ids)))
    CountedKey.comparisons = 0
    assert memory.match_length([5, 5, 6, 1], "anna") == 3
    assert len(compared) <= 2, "token by token only with the neighbours"
    assert 1 <= CountedKey.comparisons <= 3 + math.log2(branches)


def test_uses_of_a_block_need_no_memory() -> None:
    memory = Memory(8)
    memory.store(PREFIX, SHARED)
    memory.store([2, 2, 2], "anna")
    for _ in range(100):
        memory.use([*PREFIX, 5], "anna", shared_tokens=len(PREFIX))
        memory.use([2, 2, 2, 5], "anna")
    assert len(memory.cache._heap) <= 8


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(sequences, owners), max_size=8), sequences, st.integers(0, 30), st.booleans())
def test_matches_are_the_longest_common_prefixes_of_any_sequences(
    stored: list[tuple[list[int], str]], prompt: list[int], max_blocks: int, share: bool
) -> None:
    memory = Memory(60, max_blocks)
    prefix = PREFIX if share else []
    if share:
        memory.store(prefix, SHARED)
    for ids, owner in stored:
        memory.store(ids, owner, common(prefix, ids))
        assert memory.cache.unused <= max_blocks
        assert memory.match_length(ids, owner, common(prefix, ids)) >= min(len(ids), max_blocks * BLOCK_SIZE) or share
    fits = sum(blocks_for(len(ids)) for ids, _ in stored) + blocks_for(len(prefix)) <= max_blocks
    for owner in ("anna", "bob"):
        length = memory.match_length(prompt, owner, common(prefix, prompt))
        longest = max([common(ids, prompt) for ids, other in stored if other == owner], default=0)
        longest = max(longest, common(prefix, prompt))
        assert length == longest if fits else length <= longest
    for owner in ("anna", "bob", SHARED):
        memory.cache.forget(owner)
    assert (memory.cache.unused, memory.pool.free) == (0, 60)
