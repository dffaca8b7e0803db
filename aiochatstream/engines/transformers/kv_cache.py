"""Keys and values of all rows."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from math import prod

import torch

from aiochatstream.engines.transformers.cpu.native import COMPILER_FLAGS
from aiochatstream.engines.transformers.state_cache import StateCache


class KVCache:
    """Keys and values of all rows, allocated once and written in place.

    Each layer has two tensors [rows, heads, length, head size]. On a CPU, memory that was never written is only
    reserved.

    :param like: keys and values of each layer, [1, heads, any length, head size], for shapes and dtypes; an empty tuple
        for a layer without.
    :param states: states of the rows; None for a model without.
    :param native: True attends with compiled C++ for decoding rows, if it supports the device, dtype and shapes.
    """

    def __init__(
        self,
        like: Sequence[tuple[torch.Tensor, ...]],
        rows: int,
        length: int,
        states: StateCache | None = None,
        *,
        native: bool = False,
    ) -> None:
        self.native = native and all(
            keys.device.type == "cpu" and keys.dtype == values.dtype in COMPILER_FLAGS and keys.shape == values.shape
            for keys, values in filter(None, like)
        )
        self.states = StateCache({}, rows) if states is None else states
        self.layers = [
            tuple(_zeros(part, rows, part.shape[1], length, part.shape[3]) for part in layer) for layer in like
        ]
        self.length = length
        self._workspace = next((layer[0].new_empty(0) for layer in self.layers if layer), torch.empty(0))

    @property
    def size(self) -> int:
        """Size in bytes."""
        return sum(part.nbytes for layer in self.layers for part in layer)

    def workspace(self, *shape: int) -> torch.Tensor:
        """Return uninitialised memory. Each call returns the same, because allocation would cost more than its use."""
        if self._workspace.numel() < prod(shape):
            self._workspace = self._workspace.new_empty(prod(shape))
        return self._workspace[: prod(shape)].view(shape)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of a row, and its states, to another row."""
        self.states.copy_row(source, target)
        for layer in self.layers:
            for part in layer:
                part[target, :, :length] = part[source, :, :length]

    def row(self, row: int) -> list[torch.Tensor]:
        """Return views of a row's keys and values, layer by layer, each [heads, length, head size]."""
        return [part[row] for layer in self.layers for part in layer]

    def clear(self, row: int, length: int) -> None:
        """Fill the first ``length`` tokens of a row with zeros."""
        for layer in self.layers:
            for part in layer:
                part[row, :, :length] = 0


def _zeros(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Return zeros, whose memory on a CPU is allocated page by page when it is written."""
    if like.device.type != "cpu" or sys.platform == "win32":
        return like.new_zeros(*shape)
    # numpy's zeros would be large pages, and each head's first token would allocate one
    size = prod(shape) * like.element_size()
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)
