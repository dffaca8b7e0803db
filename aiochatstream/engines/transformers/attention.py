"""The attention function that is registered with transformers.

``model(..., packed=True)`` computes the thread's :class:`PackedStep`; other calls use the usual attention.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from aiochatstream.engines.transformers.custom_ops import register
from aiochatstream.engines.transformers.packed_step import PackedStep

NAME = "aiochatstream"


class _CurrentStep(threading.local):
    step: PackedStep | None = None


_current = _CurrentStep()


@contextmanager
def current_step(step: PackedStep) -> Iterator[None]:
    """Make ``model(..., packed=True)`` compute ``step`` in this thread."""
    _current.step = step
    try:
        yield
    finally:
        _current.step = None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: int,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Call :meth:`PackedStep.attend` of the thread's step, for tensors with a batch dimension of 1."""
    step = _current.step
    if step is None:
        raise RuntimeError("There is no step to compute in this thread.")
    return step.attend(layer, query[0], key[0], value[0], scale=scale, window=window, softcap=softcap)[None]


def _fake_attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *options: Any) -> torch.Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


register(
    "attend(Tensor query, Tensor key, Tensor value, int layer, float? scale, int? window, float? softcap) -> Tensor",
    _attend,
    _fake_attend,
)


def _attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: bool = False,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend for transformers' attention modules."""
    if not packed:  # the application itself uses the model
        others |= {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap}
        usual: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **others)
        return usual
    if sliding_window is None:  # some models only put it into the mask, which is not used here
        sliding_window = getattr(module, "sliding_window", None)
    if others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases")
    layer: Any = module.layer_idx
    operator: Any = torch.ops.aiochatstream.attend
    return operator(query, key, value, layer, scaling, sliding_window, softcap), None


AttentionInterface.register(NAME, _attention_function)
AttentionMaskInterface.register(NAME, sdpa_mask)
