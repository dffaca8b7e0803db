"""Keys and values of the rows: all taken at the start, written in place."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from aiochatstream.engines.transformers.cpu.native import DTYPES


class SlotCache:
    """Keys and values of all rows, written in place: for each layer two tensors [rows, heads, length, head size]."""

    def __init__(
        self, like: Sequence[tuple[torch.Tensor, torch.Tensor]], rows: int, length: int, *, native: bool = False
    ) -> None:
        """
        :param like: keys and values of each layer, [1, heads, any, head size], for their shapes and dtypes.
        :param native: rows that decode attend by a compiled function where there is one for what is in the cache.
        """
        self.native = native and all(
            keys.device.type == "cpu" and keys.dtype == values.dtype in DTYPES and keys.shape == values.shape
            for keys, values in like
        )
        self.layers = [
            tuple(one.new_zeros(rows, one.shape[1], length, one.shape[3]) for one in layer) for layer in like
        ]
        self.length = length
        self._space = self.layers[0][0].new_empty(0)
        self.token_bytes = self.size // (rows * length)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(one.nbytes for layer in self.layers for one in layer)

    def space(self, *shape: int) -> torch.Tensor:
        """Memory to compute in, the same each time: fresh one would cost more than what is computed in it."""
        if self._space.numel() < prod(shape):
            self._space = self._space.new_empty(prod(shape))
        return self._space[: prod(shape)].view(shape)

    def move(self, row: int, to: int, length: int) -> None:
        """Copy a row's first ``length`` tokens into another row."""
        for layer in self.layers:
            for one in layer:
                one[to, :, :length] = one[row, :, :length]

    def row(self, row: int) -> list[torch.Tensor]:
        """Return keys and values of a row, layer by layer, each [heads, length, head size]; not copied."""
        return [one[row] for layer in self.layers for one in layer]

    def clear(self, row: int) -> None:
        """Forget all of a row."""
        for layer in self.layers:
            for one in layer:
                one[row].zero_()
