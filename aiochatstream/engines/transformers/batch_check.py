"""The check that a model computes packed rows as it computes separate sequences."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from aiochatstream.engines.transformers.kv_cache import KVCache
from aiochatstream.engines.transformers.packed_forward import PackedForward
from aiochatstream.engines.transformers.packed_step import Chunk, PackedStep

BATCHED_LAYERS = {"full_attention", "sliding_attention"}
UNSUPPORTED_ROPES = {"dynamic", "longrope"}
"""Kinds of position embeddings that depend on the longest sequence of a batch."""

CHECK_TOKENS = 100
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
TOLERANCE_HALF = 0.5
"""Maximum difference of logits relative to their own spread, by dtype, and for half precision and quantised weights. In
half precision, two correct computations differ by about 0.1, while unrelated logits differ by 1.4."""


class CannotBatch(Exception):
    """The model cannot compute packed rows; the message is the reason."""


class BatchCheck:
    """Reference results of a model, and the comparison of packed rows with them.

    layers: keys and values of each layer, [1, heads, length, head size], for shapes and dtypes.

    Raises CannotBatch if the model's architecture is not supported.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        self._model = model
        self._config = model.config.get_text_config(decoder=True)
        # repeated tokens would have much larger numerical errors
        ids = [at * 104_729 % min(vocab_size, 2**31) for at in range(3, 3 + CHECK_TOKENS)]
        self._sequences = ids, ids[1:60]
        self._check_architecture()
        self.layers, self._expected = self._compute_reference()

    def verify(self, forward: PackedForward, *, native: bool = False) -> None:
        """Compute the reference sequences as packed rows, in several chunks. Raise CannotBatch if results differ."""
        cache = KVCache(self.layers, 2, CHECK_TOKENS, native=native)
        quantized = getattr(self._model, "is_quantized", False)
        tolerance = TOLERANCE_HALF if quantized else TOLERANCE.get(self._model.dtype, TOLERANCE_HALF)
        with torch.inference_mode():
            for expected, logits in zip(self._expected, self._compute_packed(forward, cache), strict=True):
                difference, spread = (
                    torch.linalg.vector_norm(part.float()) for part in (logits - expected, expected - expected.mean())
                )
                if not difference <= tolerance * spread:
                    raise CannotBatch("packed rows change its answers")

    def _compute_packed(self, forward: PackedForward, cache: KVCache) -> torch.Tensor:
        long, short = self._sequences
        device, dtype = self._model.device, self._model.dtype
        first = PackedStep(cache, [Chunk(0, 0, long[:-1]), Chunk(1, 0, short[:40])], device, dtype)
        forward(first)
        if self._has_window() and first.windows == {None}:
            raise CannotBatch("its attention does not pass on its window")
        return forward(PackedStep(cache, [Chunk(0, len(long) - 1, long[-1:]), Chunk(1, 40, short[40:])], device, dtype))

    def _check_architecture(self) -> None:
        model, config = self._model, self._config
        accepted = inspect.signature(model.forward).parameters
        if not model._supports_attention_backend or "past_key_values" not in accepted:
            raise CannotBatch("its attention cannot be replaced")
        if is_distributed(model):
            raise CannotBatch("its layers are on several devices")
        if not set(getattr(config, "layer_types", None) or BATCHED_LAYERS) <= BATCHED_LAYERS:
            raise CannotBatch("it has layers without attention or with chunked attention")
        ropes = getattr(config, "rope_parameters", None) or {}
        kinds = {rope.get("rope_type") for rope in (ropes, *ropes.values()) if isinstance(rope, dict)}
        if kinds & UNSUPPORTED_ROPES:
            raise CannotBatch("its positions depend on the longest sequence")

    @torch.inference_mode()
    def _compute_reference(self) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor]]:
        """Return keys and values of each layer, and the last logits of each sequence."""
        logits = []
        for ids in self._sequences:
            cache = DynamicCache(config=self._model.config)
            inputs = torch.tensor([ids], device=self._model.device)
            logits.append(self._model(input_ids=inputs, past_key_values=cache, use_cache=True).logits[0, -1])
        if not all(isinstance(layer, DynamicLayer) and layer.keys is not None for layer in cache.layers):
            raise CannotBatch("its cache does not consist of keys and values only")
        return [(layer.keys, layer.values) for layer in cache.layers], logits

    def _has_window(self) -> bool:
        """Return True if tokens of some layers attend only to a window of tokens before them."""
        config = self._config
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return window is not None and "sliding_attention" in kinds


def is_distributed(model: Any) -> bool:
    """Return True if ``device_map`` placed the layers of ``model`` on several devices."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1
