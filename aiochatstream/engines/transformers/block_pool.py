"""Allocation of the blocks of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class BlockPool:
    """Free blocks of a KV cache, by number.

    :param count: number of blocks.
    """

    def __init__(self, count: int) -> None:
        self.count = self.free = count
        self._is_free = np.ones(count, bool)

    def allocate(self, count: int) -> list[int]:
        """Return ``count`` free blocks, neighbours if possible: kernels without block tables read those in place.

        ``count`` is at most :attr:`free`.
        """
        blocks = self._neighbours(count)
        if blocks is None:
            blocks = np.flatnonzero(self._is_free)[:count]
        self._is_free[blocks] = False
        self.free -= count
        return [int(block) for block in blocks]

    def release(self, blocks: Sequence[int]) -> None:
        """Free ``blocks``, each of which is allocated."""
        self._is_free[list(blocks)] = True
        self.free += len(blocks)

    def _neighbours(self, count: int) -> np.ndarray | None:
        """Return the first ``count`` free blocks that follow one another; None if there are none."""
        changes = np.flatnonzero(np.diff(self._is_free, prepend=False, append=False))
        starts, ends = changes[::2], changes[1::2]
        fitting = np.flatnonzero(ends - starts >= count)
        return np.arange(starts[fitting[0]], starts[fitting[0]] + count) if count and len(fitting) else None
