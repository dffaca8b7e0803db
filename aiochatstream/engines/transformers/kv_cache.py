"""Paged keys and values of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
import torch

from aiochatstream.engines.transformers.cpu.native import BLOCK_SIZE, COMPILER_FLAGS
from aiochatstream.engines.transformers.device import lazy_zeros
from aiochatstream.engines.transformers.state_cache import StateCache

Kernel = Literal["native", "varlen"]
"""Kernel that reads block tables: compiled C++ for decoding rows on a CPU, or torch's ``varlen_attn`` on CUDA."""

VARLEN_BLOCK_SIZE = 256
"""Smallest block size that FlashAttention accepts."""

VARLEN_HEAD_SIZE = 256
"""Largest head size that FlashAttention accepts."""


class KVCache:
    """Keys and values of all rows, allocated once and written in place.

    Each layer has two tensors [heads, tokens, head size]. Blocks of :attr:`block_size` neighbouring tokens are assigned
    to rows by block tables: block ``n`` of a row has its tokens from position ``n * block_size`` on. So a row takes
    only the memory that it needs, rows share the blocks of a common prefix, and nothing is moved when rows come and go.
    On a CPU, memory that was never written is only reserved.

    :param like: keys and values of each layer, [1, heads, any length, head size], for shapes, dtypes and device; an
        empty tuple for a layer without.
    :param states: states of the rows; None for a model without.
    :param rows: number of rows.
    :param length: maximum number of tokens of a row.
    :param tokens: number of tokens of all rows together, rounded up to blocks; None for full rows, which then have
        their blocks already.
    :param kernel: kernel that attends, one that :func:`supports` the layers; None for torch's operations.
    """

    def __init__(
        self,
        like: Sequence[tuple[torch.Tensor, ...]],
        states: StateCache | None = None,
        *,
        rows: int,
        length: int,
        tokens: int | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        self.states = StateCache({}, rows) if states is None else states
        self.kernel = kernel
        self.block_size = block_size_of(self.kernel)
        self.length = length
        blocks_per_row = self.blocks_for(length)
        self.blocks = rows * blocks_per_row if tokens is None else self.blocks_for(tokens)
        """Number of blocks."""
        self.layers = [
            tuple(lazy_zeros(part, part.shape[1], self.blocks * self.block_size, part.shape[3]) for part in layer)
            for layer in like
        ]
        self.tables = torch.zeros(rows, blocks_per_row, dtype=torch.int32)
        """Block tables of all rows, in host memory."""
        self._tables = self.tables.numpy()
        self._sizes = [blocks_per_row] * rows
        self._shared = [0] * rows
        if tokens is None:
            self._tables[:] = np.arange(self.blocks).reshape(rows, blocks_per_row)
        self._workspaces: dict[str, torch.Tensor] = {}

    @property
    def size(self) -> int:
        """Size in bytes."""
        return sum(part.nbytes for layer in self.layers for part in layer)

    def blocks_for(self, tokens: int) -> int:
        """Return the number of blocks for ``tokens`` tokens of a row."""
        return -(-tokens // self.block_size)

    def assign(self, row: int, blocks: Sequence[int], shared: int = 0) -> None:
        """Assign ``blocks``, at least one, to a row.

        :param shared: number of blocks at the beginning that other rows read as well.
        """
        self._tables[row, : len(blocks)] = blocks
        self._tables[row, len(blocks) :] = blocks[-1]  # so that reading too much reads no other row
        self._sizes[row], self._shared[row] = len(blocks), shared

    def row_length(self, row: int) -> int:
        """Return the number of tokens in the blocks of a row."""
        return self._sizes[row] * self.block_size

    def places(self, row: int, start: int, stop: int) -> np.ndarray:
        """Return the place of each token of a row from position ``start`` to ``stop`` in the tensors of a layer."""
        first = start // self.block_size
        blocks = self._tables[row, first : self.blocks_for(stop)].astype(np.int64)
        places = (blocks[:, None] * self.block_size + np.arange(self.block_size)).ravel()
        return places[start - first * self.block_size : stop - first * self.block_size]

    def new_places(self, row: int, start: int, stop: int) -> np.ndarray:
        """Return :meth:`places`, and -1 for tokens in shared blocks, whose keys and values must not change: in another
        step, they differ by rounding.
        """
        places = self.places(row, start, stop)
        places[: max(0, self._shared[row] * self.block_size - start)] = -1
        return places

    def read(self, part: torch.Tensor, places: slice | torch.Tensor, name: str) -> torch.Tensor:
        """Return keys or values at ``places``, [heads, tokens, head size]: a view for a slice, else a copy.

        :param name: name of the workspace for the copy.
        """
        if isinstance(places, slice):
            return part[:, places]
        copy = self.workspace(name, part, len(part), len(places), part.shape[2])
        return torch.index_select(part, 1, places, out=copy)

    def workspace(self, name: str, like: torch.Tensor, *shape: int) -> torch.Tensor:
        """Return uninitialised memory. Each call with a name and dtype returns the same, because allocation would cost
        more than its use.
        """
        name += str(like.dtype)
        size = prod(shape)
        if name not in self._workspaces or self._workspaces[name].numel() < size:
            self._workspaces[name] = like.new_empty(size)
        return self._workspaces[name][:size].view(shape)

    def copy_block(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` tokens of a block to another block."""
        source, target = source * self.block_size, target * self.block_size
        for layer in self.layers:
            for part in layer:
                part[:, target : target + tokens] = part[:, source : source + tokens]

    def clear(self, blocks: Sequence[int]) -> None:
        """Fill ``blocks`` with zeros."""
        for block in blocks:
            for layer in self.layers:
                for part in layer:
                    part[:, block * self.block_size : (block + 1) * self.block_size] = 0


def block_size_of(kernel: Kernel | None) -> int:
    """Return the number of tokens in a block."""
    return VARLEN_BLOCK_SIZE if kernel == "varlen" else BLOCK_SIZE


def supports(kernel: Kernel, like: Sequence[tuple[torch.Tensor, ...]]) -> bool:
    """Return True if ``kernel`` supports all layers."""
    return any(like) and all(
        keys.dtype == values.dtype
        and keys.shape == values.shape
        and (
            keys.device.type == "cpu" and keys.dtype in COMPILER_FLAGS
            if kernel == "native"
            else keys.device.type == "cuda"
            and keys.dtype in (torch.float16, torch.bfloat16)
            and keys.shape[3] <= VARLEN_HEAD_SIZE
        )
        for keys, values in filter(None, like)
    )
