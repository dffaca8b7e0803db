"""Tests of the allocation of blocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiochatstream.engines.transformers.block_pool import BlockPool


def test_neighbours_are_preferred_to_the_first_free_blocks() -> None:
    pool = BlockPool(8)
    first, second = pool.allocate(2), pool.allocate(1)
    pool.release(first)
    assert (first, second) == ([0, 1], [2])
    assert pool.allocate(3) == [3, 4, 5]
    assert pool.allocate(4) == [0, 1, 6, 7], "any free blocks, if there are no neighbours"
    assert pool.free == 0


def test_no_block_is_allocated_for_a_count_of_zero() -> None:
    assert BlockPool(2).allocate(0) == []


@given(st.integers(1, 12), st.lists(st.integers(-3, 5), max_size=12))
def test_no_block_is_allocated_twice_or_lost(count: int, actions: list[int]) -> None:
    """Positive actions allocate blocks, the others release earlier ones."""
    pool = BlockPool(count)
    groups: list[list[int]] = []
    for action in actions:
        if action > 0:
            groups.append(pool.allocate(min(action, pool.free)))
        elif groups:
            pool.release(groups.pop(action % len(groups)))
        blocks = [block for group in groups for block in group]
        assert len(blocks) == len(set(blocks)) == count - pool.free
        assert set(blocks) <= set(range(count))
