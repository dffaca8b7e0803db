"""Allocation, and host-to-device copies."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from numpy.typing import NDArray


def device_tensor(
    numbers: Sequence[Any] | NDArray[Any], device: torch.device, dtype: torch.dtype = torch.long
) -> torch.Tensor:
    """Return a tensor of ``numbers`` on ``device``. Copies to CUDA are asynchronous, from pinned memory.

    On a CPU, the tensor may share the memory of an array.
    """
    host = torch.as_tensor(numbers, dtype=dtype)
    if device.type != "cuda":
        return host.to(device)
    return torch.empty_like(host, pin_memory=True).copy_(host).to(device, non_blocking=True)


def lazy_zeros(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Return zeros, whose memory on a CPU is allocated page by page when it is written."""
    size = prod(shape) * like.element_size()
    if like.device.type != "cpu" or sys.platform == "win32" or not size:
        return like.new_zeros(*shape)
    # numpy's zeros would be large pages, and each head's first token would allocate one
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)
