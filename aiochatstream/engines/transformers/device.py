"""Host-to-device copies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def device_tensor(
    numbers: Sequence[float] | np.ndarray, device: torch.device, dtype: torch.dtype = torch.long
) -> torch.Tensor:
    """Return a tensor of ``numbers`` on ``device``. Copies to CUDA are asynchronous, from pinned memory."""
    cuda = device.type == "cuda"
    return torch.tensor(numbers, dtype=dtype, pin_memory=cuda).to(device, non_blocking=cuda)
