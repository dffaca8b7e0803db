"""Tests of the sizes of weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from aiochatstream.engines.transformers.weights import weight_bytes


class Int8Weight(torch.Tensor):
    """A weight like those of torchao: it claims to be float32, and consists of int8 values and scales."""

    integers: torch.Tensor
    scales: torch.Tensor

    @staticmethod
    def __new__(cls, integers: torch.Tensor, scales: torch.Tensor) -> Int8Weight:
        make: Any = torch.Tensor._make_wrapper_subclass
        weight: Int8Weight = make(cls, integers.shape, dtype=torch.float32)
        weight.integers, weight.scales = integers, scales
        return weight

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["integers", "scales"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        def dequantize(value: Any) -> Any:
            return value.integers * value.scales if isinstance(value, cls) else value

        if func is torch.ops.aten.detach.default:
            return args[0]
        return func(*tree_map(dequantize, args), **tree_map(dequantize, kwargs or {}))


def test_shared_weights_count_once() -> None:
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, dtype=torch.float16)
    second.weight, second.bias = first.weight, nn.Parameter(torch.zeros(8, dtype=torch.float16))
    assert weight_bytes(nn.Sequential(first, second)) == 8 * 8 * 4 + 8 * 2


def test_quantised_weights_count_as_stored() -> None:
    layer = nn.Linear(16, 8, bias=False)
    layer.weight = nn.Parameter(Int8Weight(torch.ones(8, 16, dtype=torch.int8), torch.ones(8, 1)), requires_grad=False)
    assert layer.weight.nbytes == 8 * 16 * 4
    assert weight_bytes(layer) == 8 * 16 + 8 * 4
