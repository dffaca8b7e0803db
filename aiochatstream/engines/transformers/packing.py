"""Linear layers whose weights are laid out once for the CPU's matrix kernels, not again at every call."""

from __future__ import annotations

import torch
from torch import nn


class PackedLinear(nn.Module):
    """A linear layer in oneDNN's own layout. Only for inference on a CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), None)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        return packed


@torch.no_grad()
def pack_linears(model: nn.Module) -> int:
    """Replace the linear layers of ``model``, in place; return how many.

    The plain weight of each is dropped, so that nothing is held twice, but for one that an embedding shares. Those of
    a precision that this CPU has no kernels for stay.
    """
    packable = {dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if _packs(dtype)}
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype in packable:
                setattr(parent, name, PackedLinear(child))
                count += 1
    return count


def _packs(dtype: torch.dtype) -> bool:
    try:
        PackedLinear(nn.Linear(16, 16, dtype=dtype))(torch.zeros(1, 16, dtype=dtype))
    except (RuntimeError, AttributeError):  # no kernel for this precision, or torch is built without oneDNN
        return False
    return True
