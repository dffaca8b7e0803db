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
from torch.func import functional_call
from transformers import PreTrainedModel

from aiochatstream.engines.transformers.cpu.compiler import compile_library
from aiochatstream.engines.transformers.cpu.lazy_weight import LazyWeight
from aiochatstream.engines.transformers.cpu.packed_linear import PackedWeights, is_plain, pack_linears

SOURCE = Path(__file__).with_name("int8_linear.cpp")
DTYPES = {torch.float32, torch.bfloat16, torch.float16}
"""Dtypes of weights that are converted."""
ARGUMENTS: list[Any] = [*[c_void_p] * 7, *[c_int64] * 4, c_float]
PANEL = 16
"""Number of outputs whose weights are stored together."""
CHUNK = 2**10
"""Number of rows that are rounded together, a multiple of :data:`PANEL`."""
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
        scales = rows.abs().amax(dim=1).float().div_(MAX_WEIGHT)
        # a parameter, because a model's device and dtype are those of its parameters
        self.scales = nn.Parameter(scales, requires_grad=False)
        panels, pairs = -(-self.count // PANEL), -(-self.size // 2)
        self.packed = torch.empty(panels, pairs, PANEL, 2, dtype=torch.int8)
        """[panels, pairs of columns, rows of a panel, 2]"""
        divisors = scales.clamp(min=torch.finfo(torch.float32).tiny)
        for start in range(0, self.count, CHUNK):  # the part in float32 needs memory
            part = (rows[start : start + CHUNK].float() / divisors[start : start + CHUNK, None]).round_()
            padded = nn.functional.pad(part.to(torch.int8), (0, self.size % 2, 0, -len(part) % PANEL))
            panel = start // PANEL
            self.packed[panel : panel + len(padded) // PANEL] = padded.view(-1, PANEL, pairs, 2).transpose(1, 2)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors that hold the numbers, by name."""
        return {"packed": self.packed, "scales": self.scales}

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Return rows, [*indices, columns], float32."""
        integers = self.packed[indices // PANEL, :, indices % PANEL].flatten(-2)[..., : self.size]
        return integers * self.scales[indices][..., None]

    def take_all(self) -> torch.Tensor:
        """Return all rows, [rows, columns], float32."""
        return self.take(torch.arange(self.count))


class Int8Weights(PackedWeights):
    """The weights of linear layers in int8. Inputs and results are float32.

    :param rows: their weights, if they are in int8 already.
    """

    def __init__(self, linears: Sequence[nn.Linear], rows: Int8Rows | None = None) -> None:
        super().__init__(linears)
        self.bias = None if self.bias is None else self.bias.float()
        self.dtype = torch.float32
        self._rows = Int8Rows(torch.cat([linear.weight.detach() for linear in linears])) if rows is None else rows
        self._function = kernel()

    @property
    def plain(self) -> tuple[torch.Tensor, ...]:
        return torch.split_with_sizes(self._rows.take_all(), self.sizes)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return self._rows.tensors | ({} if self.bias is None else {"biases": self.bias})

    def multiply(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.dtype != torch.float32 or inputs.shape[-1] != self.in_features:
            raise TypeError(
                f"inputs: must be [*, {self.in_features}] in float32, not {[*inputs.shape]} in {inputs.dtype}."
            )
        return multiply(self._function, inputs, self._rows, self.bias)


class Int8Embedding(nn.Module):
    """An embedding in int8. Its results are float32.

    :param embedding: its module. One of a subclass, which for example scales the rows, computes with the rows that it
        needs. It loses its weights.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.rows = Int8Rows(embedding.weight.detach())
        self.register_buffer("packed", self.rows.packed, persistent=False)
        self.scales = self.rows.scales
        self._subclass = None if type(embedding) is nn.Embedding else embedding
        embedding.weight = nn.Parameter(torch.empty(0, self.embedding_dim), requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, computed when it is read."""
        if torch.compiler.is_compiling():  # unused results are not computed
            return self.rows.take_all()
        return LazyWeight(
            (self.num_embeddings, self.embedding_dim),
            torch.float32,
            self.rows.take_all,
            lambda index: self.rows.take(torch.tensor(index)),
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.rows.take(ids.flatten())
        if self._subclass is None:
            return rows.view(*ids.shape, self.embedding_dim)
        results: torch.Tensor = functional_call(
            self._subclass, {"weight": rows}, (torch.arange(len(rows)).view_as(ids),)
        )
        return results


@torch.no_grad()
def quantize_linears(model: nn.Module) -> int:
    """Convert the linear layers of ``model`` in place, and its input embedding; return the number of linear layers.

    The rest of the model becomes float32. Quantised layers, and experts whose weights are no linear layers, are not
    converted. Raise ValueError if the device or the CPU is not supported, or if most weights could not be converted;
    OSError if there is no C++ compiler.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"quantize: int8 requires a model on a CPU, not on {device}.")
    if not torch.cpu.get_capabilities().get("avx2"):
        raise ValueError("quantize: int8 requires an x86 CPU with AVX2, which this one is not.")
    language_model: Any = model if isinstance(model, PreTrainedModel) else None
    embedding = language_model and language_model.get_input_embeddings()
    if 2 * _count_convertible(model, embedding) < sum(parameter.numel() for parameter in model.parameters()):
        raise ValueError(f"quantize: most weights of {type(model).__name__} are not in linear layers.")
    kernel()  # may raise an error; nothing is converted yet
    shared: dict[int, Int8Rows] = {}
    if isinstance(embedding, nn.Embedding):
        weight = embedding.weight  # until its layers are converted
        converted = Int8Embedding(embedding)
        shared[id(weight)] = converted.rows
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if child is embedding and parent is not converted:
                    setattr(parent, name, converted)

    def pack(linears: Sequence[nn.Linear]) -> Int8Weights:
        return Int8Weights(linears, shared.get(id(linears[0].weight)))

    count = pack_linears(model, pack, DTYPES)
    model.float()
    return count


def _count_convertible(model: nn.Module, embedding: nn.Module | None) -> int:
    """Return the number of weights of linear layers and of the embedding; shared ones count once."""
    layers = (module for module in model.modules() if is_plain(module) or module is embedding)
    weights = [layer.weight for layer in layers if isinstance(layer, nn.Linear | nn.Embedding)]
    return sum({id(weight): weight.numel() for weight in weights if weight.dtype in DTYPES}.values())


@functools.cache
def kernel() -> Any:
    """Return the compiled function.

    Raise OSError if the compiler is missing or fails, RuntimeError if the function computes wrong results.
    """
    function = compile_library(SOURCE).linear
    function.argtypes, function.restype = ARGUMENTS, None
    size, outputs, tokens = CHECK_SIZES
    inputs = torch.arange(tokens * size).view(tokens, size).sin()
    rows = Int8Rows(torch.arange(outputs * size).view(outputs, size).cos())
    if not torch.allclose(multiply(function, inputs, rows, None), inputs @ rows.take_all().T, atol=1e-2):
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
