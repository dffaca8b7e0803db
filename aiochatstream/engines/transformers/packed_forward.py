"""The forward pass of a packed step."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from aiochatstream.engines.transformers.attention import current_step
from aiochatstream.engines.transformers.custom_ops import original_errors
from aiochatstream.engines.transformers.packed_step import PackedStep


class PackedForward:
    """Runs a model on packed steps. It does not refer to the engine, so that an unused engine can be collected.

    :param compiled: True compiles the model with torch.compile at the first call, which may take a minute.
    """

    def __init__(self, model: Any, *, compiled: bool = False) -> None:
        self._model = model
        self._no_mask = torch.empty(1, 1, 1, 1, device=model.device)  # in four dimensions: the model creates no mask
        self._has_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._compiled: Any = None
        if compiled:
            compile_: Any = torch.compile  # its types are incomplete
            self._compiled = compile_(
                self._run,
                fullgraph=True,
                dynamic=True,
                isolate_recompiles=True,  # other engines' models do not cause recompilations
                options={"guard_filter_fn": _guards, "cpp_wrapper": model.device.type == "cpu"},
            )

    def __call__(self, step: PackedStep) -> torch.Tensor:
        """Return the logits [tokens, vocabulary] at ``step.output_positions``."""
        inputs = [step.ids, step.positions, step.output_positions]
        if self._compiled:  # code for dynamic sizes requires sizes of 2 or more
            inputs = [part if part.shape[-1] > 1 else torch.cat((part, part), -1) for part in inputs]
        with original_errors(), current_step(step), step.states.advance():
            logits: torch.Tensor = (self._compiled or self._run)(*inputs)
            return logits[: len(step.output_positions)]

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, output_positions: torch.Tensor) -> torch.Tensor:
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self._no_mask,
            use_cache=False,
            packed=True,
            **({"logits_to_keep": output_positions} if self._has_logits_to_keep else {}),
        )
        logits: torch.Tensor = output.logits[0] if self._has_logits_to_keep else output.logits[0, output_positions]
        return logits


def _guards(entries: Sequence[Any]) -> list[bool]:
    """Keep only the guards of a compiled model's inputs.

    The model and torch's settings do not change any more, and checking all of them takes as long as some layers.
    """
    compiler: Any = torch.compiler  # untyped
    tensors = compiler.keep_tensor_guards_unsafe(entries)
    return [is_tensor or entry.guard_type == "SHAPE_ENV" for is_tensor, entry in zip(tensors, entries, strict=True)]
