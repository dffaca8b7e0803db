"""Classification of the errors of forward passes."""

from __future__ import annotations

import torch

from aiochatstream.engines.transformers.device import device_tensor

OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "aoti_torch_empty")
"""Parts of the messages of torch and of its compiled code, which raise RuntimeError on a CPU."""


def is_out_of_memory(error: Exception) -> bool:
    """Return True if a pass with fewer tokens may succeed because it needs less memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def is_usable(device: torch.device) -> bool:
    """Return False if ``device`` cannot compute any more, for example after an assertion failed in a CUDA kernel."""
    try:
        return device_tensor([0], device).add(1).tolist() == [1]
    except Exception:  # noqa: BLE001 - torch has no class of permanent errors
        return False
