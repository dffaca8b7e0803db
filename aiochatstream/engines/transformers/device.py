"""Numbers on their way to where the model computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def tensor(numbers: Sequence[float], device: torch.device, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """A tensor of ``numbers`` on ``device``. CUDA fetches them by itself, so that nobody waits for it."""
    cuda = device.type == "cuda"
    return torch.tensor(numbers, dtype=dtype, pin_memory=cuda).to(device, non_blocking=cuda)
