"""Linear layers whose weights are laid out once for the CPU's matrix kernels, not again at every call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that read the same input, one after another, in the models that have them."""


class PackedLinear(nn.Module):
    """A linear layer in oneDNN's own layout. Only for inference on a CPU."""

    def __init__(self, weights: PackedWeights, index: int) -> None:
        super().__init__()
        self._weights, self._index = weights, index
        self.in_features, self.out_features = weights.in_features, weights.sizes[index]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._weights.apply(inputs, self._index)


class PackedWeights:
    """The weights of linear layers that read the same input: all are computed when the first one is asked."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self.in_features = linears[0].in_features
        self.sizes = [linear.out_features for linear in linears]
        weight = torch.cat([linear.weight.detach() for linear in linears])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._latest: tuple[torch.Tensor, tuple[torch.Tensor, ...]] | None = None

    def apply(self, inputs: torch.Tensor, index: int) -> torch.Tensor:
        """What the layer at ``index`` makes of ``inputs``."""
        latest = self._latest
        if latest is None or latest[0] is not inputs:
            together = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
            latest = inputs, torch.split_with_sizes(together, self.sizes, -1)
        self._latest = latest if index + 1 < len(self.sizes) else None
        return latest[1][index]


@torch.no_grad()
def pack_linears(model: nn.Module) -> int:
    """Replace the linear layers of ``model``, in place; return how many.

    The plain weight of each is dropped, so that nothing is held twice, but for one that an embedding shares. Those of
    a precision that this CPU has no kernels for stay.
    """
    packable = {dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if _packs(dtype)}
    count = 0
    for parent in list(model.modules()):
        plain = {
            name: child
            for name, child in parent.named_children()
            if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype in packable
        }
        together = [names for names in SIBLINGS if _alike([plain.get(name) for name in names])]
        alone = [(name,) for name in plain if not any(name in names for names in together)]
        for names in (*together, *alone):
            weights = PackedWeights([plain[name] for name in names])
            for index, name in enumerate(names):
                setattr(parent, name, PackedLinear(weights, index))
        count += len(plain)
    return count


def _alike(linears: Sequence[nn.Linear | None]) -> bool:
    kinds = {linear and (linear.in_features, linear.weight.dtype, linear.bias is None) for linear in linears}
    return len(kinds) == 1 and None not in kinds


def _packs(dtype: torch.dtype) -> bool:
    try:
        PackedWeights([nn.Linear(16, 16, dtype=dtype)]).apply(torch.zeros(1, 16, dtype=dtype), 0)
    except (RuntimeError, AttributeError):  # no kernel for this precision, or torch is built without oneDNN
        return False
    return True
