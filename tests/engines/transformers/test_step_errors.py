"""Tests of the classification of errors."""

from __future__ import annotations

import pytest
import torch

from aiochatstream.engines.transformers.step_errors import is_out_of_memory, is_usable


def test_only_a_device_that_computes_is_usable() -> None:
    assert is_usable(torch.device("cpu"))
    assert not is_usable(torch.device("meta"))  # its tensors have no data


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."), True),
        (RuntimeError("aoti_torch_empty_strided( ... ) API call failed"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ZeroDivisionError(), False),
    ],
    ids=repr,
)
def test_errors_of_allocations_are_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
