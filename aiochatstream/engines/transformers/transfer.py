"""Numbers on their way to where the model computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def tensor(numbers: Sequence[float], device: torch.device, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """A tensor of ``numbers`` on ``device``. A GPU gets them on its way, so that nobody waits for it."""
    made = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return made.to(device, non_blocking=True)
