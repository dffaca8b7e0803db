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


@given(st.data(), st.integers(1, 12))
def test_no_block_is_allocated_twice_or_lost(data: st.DataObject, count: int) -> None:
    pool = BlockPool(count)
    held: list[list[int]] = []
    for _ in range(data.draw(st.integers(0, 12))):
        if held and data.draw(st.booleans()):
            pool.release(held.pop(data.draw(st.integers(0, len(held) - 1))))
        else:
            held.append(pool.allocate(data.draw(st.integers(0, pool.free))))
        blocks = [block for one in held for block in one]
        assert len(blocks) == len(set(blocks)) == count - pool.free
        assert set(blocks) <= set(range(count))
