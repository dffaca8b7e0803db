"""Linear layers and embeddings in int8, by a C++ kernel that is compiled at the first use.

The weights of an output have a scale of their own. The inputs of a token are rounded to 16-bit integers: AVX2
multiplies them as fast as 8-bit ones, and no outliers are lost. Products are sums of integers, so that a token's result
is the same with any other tokens in the step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aiochatstream.engines.transformers.cpu.compiler import compile_library
from aiochatstream.engines.transformers.cpu.packed_linear import PackedWeights, is_plain, pack_linears

SOURCE = Path(__file__).with_name("int8_linear.cpp")
MACROS = {torch.float32: [], torch.bfloat16: ["-DBFLOAT16"]}
"""Compiler options for each supported dtype."""
ARGUMENTS: list[Any] = [*[c_void_p] * 7, *[c_int64] * 4, c_float]
PANEL = 16
"""Number of outputs whose weights are stored together."""
MAX_WEIGHT, MAX_INPUT, MAX_SUM = 127, 2**15 - 1, 2**31 - 1
"""Largest integers: of weights, of inputs, and of a sum of their products."""
CHECK_SIZES = 50, 7, 5
"""Inputs, outputs and tokens of the layer with which a compiled kernel is checked."""


class Int8Rows:
    """Numbers in int8, with a scale for each row.

    :param rows: [rows, columns]
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.count, self.size = rows.shape
        self.scales = rows.abs().amax(dim=1).float().div_(MAX_WEIGHT)
        integers = (rows.float() / self.scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_()
        padded = nn.functional.pad(integers.to(torch.int8), (0, self.size % 2, 0, -self.count % PANEL))
        self.packed = padded.view(-1, PANEL, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()
        """[panels, pairs of columns, rows of a panel, 2], int8"""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors that hold the numbers, by name."""
        return {"packed": self.packed, "scales": self.scales}

    def take(self, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return rows, [*indices, columns]."""
        integers = self.packed[indices // PANEL, :, indices % PANEL].flatten(-2)[..., : self.size]
        return (integers * self.scales[indices][..., None]).to(dtype)


class Int8Weights(PackedWeights):
    """The weights of linear layers in int8.

    :param rows: their weights, if they are in int8 already.
    """

    def __init__(self, linears: Sequence[nn.Linear], rows: Int8Rows | None = None) -> None:
        super().__init__(linears)
        weights = [linear.weight.detach() for linear in linears]
        self._dtype = weights[0].dtype
        self._rows = Int8Rows(torch.cat(weights)) if rows is None else rows
        self._bias_sum = None if self.bias is None else self.bias.float()
        self._function = kernel(self._dtype)

    @property
    def plain(self) -> tuple[torch.Tensor, ...]:
        return torch.split_with_sizes(self._rows.take(torch.arange(self._rows.count), self._dtype), self.sizes)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return self._rows.tensors | ({} if self._bias_sum is None else {"bias_sum": self._bias_sum})

    def multiply(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.dtype != self._dtype or inputs.shape[-1] != self.in_features:
            raise TypeError(
                f"inputs: must be [*, {self.in_features}] in {self._dtype}, not {[*inputs.shape]} in {inputs.dtype}."
            )
        return multiply(self._function, inputs, self._rows, self._bias_sum)


class Int8Embedding(nn.Module):
    """An embedding in int8."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self._dtype = embedding.weight.dtype
        self.rows = Int8Rows(embedding.weight.detach())
        for name, tensor in self.rows.tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the plain weight."""
        return self.rows.take(torch.arange(self.num_embeddings), self._dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.rows.take(ids, self._dtype)


@torch.no_grad()
def quantize_linears(model: nn.Module) -> int:
    """Replace the linear layers of ``model`` in place, and plain embeddings that share their weights; return the number
    of linear layers.

    Quantised layers, and experts whose weights are no linear layers, remain. Raise ValueError if the model or the CPU
    is not supported, OSError if there is no C++ compiler.
    """
    check_support(model)
    shared: dict[int, Int8Rows] = {}
    linear_weights = {id(module.weight) for module in model.modules() if is_plain(module)}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Embedding and id(child.weight) in linear_weights:
                embedding = Int8Embedding(child)
                shared[id(child.weight)] = embedding.rows
                setattr(parent, name, embedding)

    def pack(linears: Sequence[nn.Linear]) -> Int8Weights:
        return Int8Weights(linears, shared.get(id(linears[0].weight)))

    return pack_linears(model, pack, set(MACROS))


def check_support(model: nn.Module) -> None:
    """Raise ValueError if weights of ``model`` are on another device, of another dtype, or the CPU has no AVX2."""
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        raise ValueError(f"quantize: int8 requires a model on a CPU, not on {weight.device}.")
    if weight.dtype not in MACROS:
        names = [str(dtype).removeprefix("torch.") for dtype in (*MACROS, weight.dtype)]
        raise ValueError(f"quantize: int8 requires a model in {names[0]} or {names[1]}, not {names[2]}.")
    if not torch.cpu.get_capabilities().get("avx2"):
        raise ValueError("quantize: int8 requires an x86 CPU with AVX2, which this one is not.")


@functools.cache
def kernel(dtype: torch.dtype) -> Any:
    """Return the compiled function for inputs of ``dtype``.

    Raise OSError if the compiler is missing or fails, RuntimeError if the function computes wrong results.
    """
    function = compile_library(SOURCE, MACROS[dtype]).linear
    function.argtypes, function.restype = ARGUMENTS, None
    size, outputs, tokens = CHECK_SIZES
    inputs, weight = (
        torch.arange(count * size, dtype=torch.float32).view(count, size).sin() for count in (tokens, outputs)
    )
    rows, inputs = Int8Rows(weight), inputs.to(dtype)
    expected = inputs.float() @ rows.take(torch.arange(outputs), torch.float32).T
    if not torch.allclose(multiply(function, inputs, rows, None).float(), expected, rtol=2**-7, atol=1e-2):
        raise RuntimeError("quantize: the kernel for int8 computes wrong results on this CPU.")
    return function


def multiply(function: Any, inputs: torch.Tensor, rows: Int8Rows, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the products of ``inputs`` [*, columns] and the transposed rows, [*, rows], by a compiled function."""
    inputs = inputs.contiguous()
    tokens = inputs.numel() // rows.size
    outputs = inputs.new_empty(*inputs.shape[:-1], rows.count)
    integers = torch.empty(tokens, rows.packed.shape[1] * 2, dtype=torch.int16)
    scales = torch.empty(tokens, dtype=torch.float32)
    limit = min(MAX_INPUT, MAX_SUM // (MAX_WEIGHT * rows.size))
    arrays = inputs, rows.packed, rows.scales, bias, outputs, integers, scales
    function(
        *(None if array is None else array.data_ptr() for array in arrays),
        *(torch.get_num_threads(), tokens, rows.size, rows.count, limit),
    )
    return outputs
