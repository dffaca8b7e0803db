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

IGNORED_OPTIONS = {"position_ids", "position_embeddings"}
"""Options that models pass on although attention does not use them."""


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


def running_step() -> PackedStep | None:
    """Return the step that this thread computes."""
    return _current.step


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: int,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Call :meth:`PackedStep.attend` of the thread's step, for tensors with a batch dimension of 1."""
    step = _current.step
    if step is None:
        raise RuntimeError("There is no step to compute in this thread.")
    options: Any = {"scale": scale, "window": window, "softcap": softcap, "sinks": sinks}
    return step.attend(layer, query[0], key[0], value[0], **options)[None]


def _fake_attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *options: Any) -> torch.Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


register(
    "attend(Tensor query, Tensor key, Tensor value, int layer, float? scale, int? window, float? softcap, "
    "Tensor? sinks) -> Tensor",
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
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend for transformers' attention modules.

    Raise NotImplementedError for options that packed attention, or torch's own for other calls, would ignore.
    """
    if not packed:  # the application itself uses the model
        if s_aux is not None:
            raise NotImplementedError("attention with sinks outside of the engine")
        others |= {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap}
        usual: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **others)
        return usual
    if unsupported := [name for name, option in others.items() if not _is_ignorable(name, option)]:
        raise NotImplementedError(f"attention with {', '.join(unsupported)}")
    if sliding_window is None:  # some models only put it into the mask, which is not used here
        sliding_window = getattr(module, "sliding_window", None)
    layer: Any = module.layer_idx
    operator: Any = torch.ops.aiochatstream.attend
    return operator(query, key, value, layer, scaling, sliding_window, softcap, s_aux), None


def _is_ignorable(name: str, option: Any) -> bool:
    """Return True if an option of attention does not change a packed step, or would change every short sequence, which
    the check at load detects. Tokens that sparse attention selects, for example, change only long ones.
    """
    return option is None or isinstance(option, bool | float) or name in IGNORED_OPTIONS


AttentionInterface.register(NAME, _attention_function)
AttentionMaskInterface.register(NAME, sdpa_mask)
