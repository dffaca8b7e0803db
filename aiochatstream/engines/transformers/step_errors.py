"""Classification of the errors of forward passes, and the memory that errors hold."""

from __future__ import annotations

import traceback

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


def clear_frames(error: BaseException | None) -> None:
    """Clear the local variables of the frames in the tracebacks of ``error`` and of its causes: they hold memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
