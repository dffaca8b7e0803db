"""Sizes of weights in memory."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all weights; shared ones count once."""
    return sum(map(_bytes_of, chain(model.parameters(), model.buffers())))


def has_int8(model: nn.Module) -> bool:
    """Return True if layers of ``model`` were converted to int8."""
    return any(buffer.dtype == torch.int8 for buffer in model.buffers())


def _bytes_of(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor, or of the tensors that it consists of: torchao's report the size of plain ones."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.nbytes
    names, _ = flatten()
    return sum(_bytes_of(getattr(tensor, name)) for name in names)
