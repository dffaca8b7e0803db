"""Host-to-device copies."""

from __future__ import annotations

from collections.abc import Sequence
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
