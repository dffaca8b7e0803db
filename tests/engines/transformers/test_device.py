"""Tests of host-to-device copies, and of the devices that a CPU imitates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError

from aiochatstream.engines.transformers.device import device_tensor
from tests.engines.transformers.fake_devices import FakeDevice, value_of

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("kind", ["cuda", "mps"])]


@pytest.mark.parametrize(
    ("numbers", "dtype"),
    [
        ([], torch.long),
        ([1, 2**40], torch.long),
        ([0.5, -torch.inf], torch.float32),
        (np.arange(6).reshape(2, 3), torch.int32),
        (np.array([[True, False]]), torch.bool),
    ],
)
def test_numbers_are_copied_without_a_wait(kind: Any, numbers: Any, dtype: torch.dtype) -> None:
    expected = torch.tensor(numbers, dtype=dtype)
    assert torch.equal(device_tensor(numbers, torch.device("cpu"), dtype), expected)
    with FakeDevice(kind) as device:
        copied = device_tensor(numbers, device.device, dtype)
        assert copied.device == device.device
        assert device.waits == []
    assert copied.dtype == dtype
    assert torch.equal(value_of(copied), expected)


@pytest.mark.parametrize(
    "operation",
    [
        lambda numbers: numbers + torch.ones(3),
        lambda numbers: torch.cat((numbers, torch.ones(3))),
        lambda numbers: numbers.masked_fill(torch.tensor([True, False, True]), 0),
    ],
)
def test_a_fake_device_rejects_tensors_of_another_device(
    kind: Any, operation: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    with FakeDevice(kind) as device, pytest.raises(FakeTensorDeviceMismatchError):
        operation(torch.ones(3, device=device.device))


@pytest.mark.parametrize(
    "operation",
    [
        lambda numbers: bool(numbers.any()),
        lambda numbers: numbers.tolist(),
        lambda numbers: numbers.cpu(),
        lambda numbers: numbers.nonzero(),
        lambda numbers: numbers[numbers > 0],
        lambda numbers: torch.equal(numbers, numbers),
        lambda numbers: float(numbers[0]),
    ],
)
def test_a_fake_device_counts_waits_for_results(kind: Any, operation: Callable[[torch.Tensor], Any]) -> None:
    expected = operation(torch.tensor([0.5, 0.0]))
    with FakeDevice(kind) as device:
        numbers = device_tensor([0.5, 0.0], device.device, torch.float32)
        result: Any = operation(numbers)
        assert len(device.waits) == 1
        assert (result.tolist() if isinstance(result, torch.Tensor) else result) == (
            expected.tolist() if isinstance(expected, torch.Tensor) else expected
        )


@pytest.mark.parametrize(
    "operation",
    [
        lambda numbers: torch.tensor([1], device=numbers.device),
        lambda numbers: numbers[torch.tensor([0])],
        lambda numbers: numbers.copy_(torch.ones(2)),
        lambda numbers: torch.ones(2).to(numbers.device, non_blocking=True),  # of memory that is not pinned
    ],
)
def test_a_fake_device_counts_waits_for_copies_to_cuda(kind: Any, operation: Callable[[torch.Tensor], Any]) -> None:
    with FakeDevice(kind) as device:
        operation(torch.ones(2, device=device.device))
        assert len(device.waits) == (kind == "cuda")


def test_a_fake_mps_device_has_no_float64(kind: Any) -> None:
    with FakeDevice(kind) as device:
        if kind == "cuda":
            torch.ones(1, device=device.device).double()
        else:
            with pytest.raises(TypeError, match="float64"):
                torch.ones(1, device=device.device).double()


def test_a_fake_device_rejects_operations_without_a_kernel(kind: Any) -> None:
    with FakeDevice(kind) as device, pytest.raises(NotImplementedError, match="has no kernel for"):
        torch.ops.aten._weight_int4pack_mm_for_cpu(
            *(torch.ones(2, 2, device=device.device) for _ in range(2)), 1, torch.ones(2, device=device.device)
        )


def test_views_and_operations_in_place_share_values(kind: Any) -> None:
    with FakeDevice(kind) as device:
        numbers = torch.zeros(2, 3, device=device.device)
        numbers[1] = 2
        numbers.T[0].add_(1)
        torch.add(numbers, 1, out=numbers)
        assert numbers.tolist() == [[2, 1, 1], [4, 3, 3]]
