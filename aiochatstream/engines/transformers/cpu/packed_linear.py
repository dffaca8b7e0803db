"""Linear layers whose weights are converted once to the layout of the CPU's matrix kernels, not at every call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from itertools import count
from typing import TypeGuard
from weakref import WeakValueDictionary

import torch
from torch import nn

from aiochatstream.engines.transformers.cpu.lazy_weight import LazyWeight
from aiochatstream.engines.transformers.custom_ops import register

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers with the same input, which models call one after another."""


class PackedLinear(nn.Module):
    """A linear layer with packed weights. Only for inference on a CPU."""

    def __init__(self, weights: PackedWeights, index: int) -> None:
        super().__init__()
        self._weights, self._index = weights, index
        self.in_features, self.out_features = weights.in_features, weights.sizes[index]
        self._dtype = weights.dtype
        for name, tensor in weights.tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, computed when it is read, for models that read it (for example its dtype)."""
        if torch.compiler.is_compiling():  # unused results are not computed
            return self._weights.plain[self._index]
        return LazyWeight((self.out_features, self.in_features), self._dtype, lambda: self._weights.plain[self._index])

    @property
    def bias(self) -> torch.Tensor | None:
        return self._weights.biases[self._index]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._weights.apply(inputs, self._index)


class PackedWeights(ABC):
    """The weights of linear layers with the same input. The first call computes the results of all of them."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self.in_features, self.dtype = linears[0].in_features, linears[0].weight.dtype
        self.sizes = [linear.out_features for linear in linears]
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        """Biases of all layers, [outputs]."""
        self._latest: tuple[torch.Tensor, tuple[torch.Tensor, ...]] | None = None
        self._number = next(_numbers)
        _packed[self._number] = self

    @abstractmethod
    def multiply(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the concatenated results of all layers."""

    @property
    @abstractmethod
    def plain(self) -> tuple[torch.Tensor, ...]:
        """Copies of the weights, each [out, in]."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers of the layers, by name."""
        return {}

    @property
    def biases(self) -> Sequence[torch.Tensor | None]:
        """Bias of each layer."""
        return [None] * len(self.sizes) if self.bias is None else torch.split_with_sizes(self.bias, self.sizes)

    def apply(self, inputs: torch.Tensor, index: int) -> torch.Tensor:
        """Return the result of the layer at ``index``."""
        latest = self._latest
        if latest is None or latest[0] is not inputs:
            if torch.compiler.is_compiling():  # torch.compile does not support packed weights
                product = torch.ops.aiochatstream.linear(inputs, self._number, sum(self.sizes))
            else:
                product = self.multiply(inputs)
            latest = inputs, torch.split_with_sizes(product, self.sizes, -1)
        self._latest = latest if index + 1 < len(self.sizes) else None
        return latest[1][index]


class OneDNNWeights(PackedWeights):
    """The weights of linear layers in oneDNN's layout."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__(linears)
        weight = torch.cat([linear.weight.detach() for linear in linears])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    @property
    def plain(self) -> tuple[torch.Tensor, ...]:
        return torch.split_with_sizes(self._weight.to_dense(), self.sizes)

    def multiply(self, inputs: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self.bias, "none", [], "")
        return product


_numbers = count()
_packed: WeakValueDictionary[int, PackedWeights] = WeakValueDictionary()


def _linear(inputs: torch.Tensor, number: int, size: int) -> torch.Tensor:
    """Call :meth:`PackedWeights.multiply` of the numbered weights; ``size`` is the size of its last dimension."""
    return _packed[number].multiply(inputs)


register(
    "linear(Tensor inputs, int number, int size) -> Tensor",
    _linear,
    lambda inputs, number, size: inputs.new_empty(*inputs.shape[:-1], size),
)


def prepack_linears(model: nn.Module) -> int:
    """Convert the linear layers of ``model`` to oneDNN's layout in place, like :func:`pack_linears`.

    Layers of a dtype without kernels on this CPU are not replaced.
    """
    supported = {dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if _can_prepack(dtype)}
    return pack_linears(model, OneDNNWeights, supported)


@torch.no_grad()
def pack_linears(
    model: nn.Module, pack: Callable[[Sequence[nn.Linear]], PackedWeights], dtypes: Collection[torch.dtype]
) -> int:
    """Replace the linear layers of ``model`` on the CPU in place; return their number.

    Their plain weights are freed, unless an embedding shares them. Quantised layers are not replaced.

    :param pack: converts the weights of layers with the same input.
    :param dtypes: dtypes of the layers to replace.
    """
    count = 0
    parents = [module for module in model.modules() if next(module.children(), None) is not None]
    for parent in parents:  # a list of all modules would keep the plain weights
        plain = {
            name: child
            for name, child in parent.named_children()
            if is_plain(child) and child.weight.device.type == "cpu" and child.weight.dtype in dtypes
        }
        siblings = [names for names in SIBLINGS if _are_compatible([plain.get(name) for name in names])]
        singles = [(name,) for name in plain if not any(name in names for names in siblings)]
        for names in (*siblings, *singles):
            weights = pack([plain[name] for name in names])
            for index, name in enumerate(names):
                setattr(parent, name, PackedLinear(weights, index))
        count += len(plain)
    return count


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return True for a linear layer whose class, forward pass and weight are torch's own.

    Quantisation libraries replace either of them: the class (bitsandbytes, GPTQ), the forward pass of an object
    (compressed-tensors), or the class of the weight (torchao).
    """
    has_own_forward = "forward" in vars(module) or bool(module._forward_hooks or module._forward_pre_hooks)
    return type(module) is nn.Linear and not has_own_forward and type(module._parameters.get("weight")) is nn.Parameter


def _are_compatible(linears: Sequence[nn.Linear | None]) -> bool:
    kinds = {linear and (linear.in_features, linear.weight.dtype, linear.bias is None) for linear in linears}
    return len(kinds) == 1 and None not in kinds


def _can_prepack(dtype: torch.dtype) -> bool:
    try:
        OneDNNWeights([nn.Linear(16, 16, dtype=dtype)]).apply(torch.zeros(1, 16, dtype=dtype), 0)
    except (RuntimeError, AttributeError):  # no kernel for this dtype, or torch is built without oneDNN
        return False
    return True
