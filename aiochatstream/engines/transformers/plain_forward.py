"""Forward passes of single sequences with transformers' own cache."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
from transformers import DynamicCache

from aiochatstream.engines.transformers.device import device_tensor
from aiochatstream.engines.transformers.weights import has_int8

CACHE_NAMES = ("past_key_values", "cache_params")
"""Names of the parameter with which modules and models receive their cache."""

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
TOLERANCE_INT8, TOLERANCE_HALF = 0.02, 0.5
"""Maximum difference of logits relative to their own spread, by dtype; with weights in int8, whose inputs are rounded;
and for half precision and quantised checkpoints. In half precision, two correct computations differ by about 0.1, while
unrelated logits differ by 1.4."""


class PlainForward:
    """Runs a model on one sequence at a time.

    Raises ValueError if the model has no known kind of cache.
    """

    def __init__(self, model: Any) -> None:
        self._accepted = inspect.signature(model.forward).parameters
        names = [name for name in CACHE_NAMES if name in self._accepted]
        if not names:
            raise ValueError(f"{type(model).__name__} cannot be served: it has no known kind of cache.")
        self._model, self._cache_name = model, names[0]

    @torch.inference_mode()
    def __call__(self, ids: list[int], cache: DynamicCache, start: int = 0, keep: int = 1) -> torch.Tensor:
        """Append ``ids`` to a cache of ``start`` tokens; return the logits [keep, vocabulary] of the last positions."""
        inputs = device_tensor([ids, range(start, start + len(ids))], self._model.device)
        options = {"logits_to_keep": keep, "position_ids": inputs[1:]}  # some models would always count from 0
        options = {name: option for name, option in options.items() if name in self._accepted}
        output = self._model(input_ids=inputs[:1], use_cache=True, **{self._cache_name: cache}, **options)
        logits: torch.Tensor = output.logits[0, -keep:]
        return logits

    def new_cache(self) -> DynamicCache:
        """Return the cache of a new sequence."""
        return DynamicCache(config=self._model.config)

    def continues_states(self, ids: list[int]) -> bool:
        """Return True if the model computes ``ids`` in several parts as it computes all at once.

        Some modules with states ignore an earlier state if they compute several tokens.
        """
        cache, starts = self.new_cache(), [0, len(ids) // 3, len(ids)]
        parts = [self(ids[start:end], cache, start) for start, end in pairwise(starts)]
        return are_close(self._model, parts[-1], self(ids, self.new_cache()))


def are_close(model: Any, logits: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return True if logits of ``model`` differ only by rounding."""
    tolerance = TOLERANCE_HALF if getattr(model, "is_quantized", False) else TOLERANCE.get(model.dtype, TOLERANCE_HALF)
    if has_int8(model):
        tolerance = max(tolerance, TOLERANCE_INT8)
    difference, spread = (
        torch.linalg.vector_norm(part.float()) for part in (logits - expected, expected - expected.mean())
    )
    return bool(difference <= tolerance * spread)
