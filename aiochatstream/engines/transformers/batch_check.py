"""The check that a model computes packed rows as it computes separate sequences."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import (
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.kv_cache import Kernel, KVCache
from aiochatstream.engines.transformers.mixers import MixerProbe, PackedMixer
from aiochatstream.engines.transformers.packed_forward import PackedForward
from aiochatstream.engines.transformers.packed_step import PackedStep
from aiochatstream.engines.transformers.plain_forward import PlainForward, are_close
from aiochatstream.engines.transformers.state_cache import StateCache, StateKey

logger = logging.getLogger(__name__)

CACHE_LAYERS = {
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
}
"""transformers' layers of keys, values and states. Others, for example those of sparse attention, have more."""

CHECK_TOKENS = 100


class CannotBatch(Exception):
    """The model cannot compute packed rows; the message is the reason."""


class BatchCheck:
    """Reference results of a model, and the comparison of packed rows with them.

    The reference computes the last tokens one by one, because some models compute single tokens slightly otherwise.

    layers: keys and values of each layer, [1, heads, any length, head size], for shapes and dtypes; empty for layers
        without. They are set by :meth:`verify`.
    states: states of one sequence, [1, ...], for shapes and dtypes.
    mixers: replacements of the modules that use states.

    Raises CannotBatch if the model's architecture is not supported.

    :param context_len: maximum number of tokens in a sequence.
    """

    def __init__(self, model: Any, vocab_size: int, context_len: int) -> None:
        self._model = model
        self._config = model.config.get_text_config(decoder=True)
        # repeated tokens would have much larger numerical errors
        ids = [at * 104_729 % min(vocab_size, 2**31) for at in range(3, 3 + CHECK_TOKENS)]
        self._sequences = ids, ids[1:60]
        self._check_architecture()
        for limit, reason in self._context_limits():
            if context_len > limit:
                raise CannotBatch(f"{reason} in contexts above {limit} tokens")
        plain, probe = PlainForward(model), MixerProbe(model.config)
        long, short = self._sequences
        with probe.watch(model):
            plain(long[:-2], probe)
            plain(long[-2:-1], probe, len(long) - 2)
            expected = [plain(long[-1:], probe, len(long) - 1)]
        cache = plain.new_cache()
        plain(short[:-1], cache)
        self._expected = torch.cat([*expected, plain(short[-1:], cache, len(short) - 1)])
        self.layers: list[tuple[torch.Tensor, ...]] = []
        self._attention, self.states = _parts(probe)
        if probe.obstacle is not None:
            raise CannotBatch(probe.obstacle)
        if self.states and not plain.continues_states(ids):
            raise CannotBatch("its states cannot be continued by several tokens")
        self.mixers = [PackedMixer(module, output) for module, output in probe.outputs.items()]

    def verify(self, forward: PackedForward, kernel: Kernel | None = None) -> None:
        """Compute the reference sequences as packed rows, in several chunks. Raise CannotBatch if results differ."""
        if not self.layers:
            self.layers = self._find_layers(forward)
        cache = KVCache(self.layers, StateCache(self.states, 3), rows=3, length=CHECK_TOKENS, kernel=kernel)
        blocks = cache.blocks_for(CHECK_TOKENS)
        for row in range(3):  # blocks that are no neighbours, in any order
            cache.assign(row, [*range(row, 3 * blocks, 3)][::-1])
        with torch.inference_mode():
            for expected, logits in zip(self._expected, self._compute_packed(forward, cache), strict=True):
                if not are_close(self._model, logits, expected):
                    raise CannotBatch("packed rows change its answers")

    def use_updates(self, forward: PackedForward) -> None:
        """Update the states of decoding rows by compiled functions, unless they are missing or change answers."""
        try:
            for mixer in self.mixers:
                mixer.use_updates()
            if any(mixer.updates_in_slots for mixer in self.mixers):
                self.verify(forward)
        except Exception as error:  # noqa: BLE001 - no compiler, or a module that reads the states itself
            for mixer in self.mixers:
                mixer.use_reference()
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            logger.info("States by torch's operations: the compiled updates are not available (%s).", reason)

    def _compute_packed(self, forward: PackedForward, cache: KVCache) -> torch.Tensor:
        """Return the last logits of each sequence. The rows are not neighbours, and both decode the last token."""
        long, short = self._sequences
        steps = [
            [Chunk(0, 0, long[:-2]), Chunk(2, 0, short[:40])],
            [Chunk(0, len(long) - 2, long[-2:-1]), Chunk(2, 40, short[40:-1])],
            [Chunk(0, len(long) - 1, long[-1:]), Chunk(2, len(short) - 1, short[-1:])],
        ]
        for chunks in steps:
            step = PackedStep(cache, chunks, self._model.device, self._model.dtype)
            logits = forward(step)
            if self._has_window() and step.windows == {None}:
                raise CannotBatch("its attention does not pass on its window")
        return logits

    @torch.inference_mode()
    def _find_layers(self, forward: PackedForward) -> list[tuple[torch.Tensor, ...]]:
        """Return the keys and values that each layer attends to. Its cache may have others, for example compressed."""
        cache = KVCache([], StateCache(self.states, 1), rows=1, length=CHECK_TOKENS)
        step = _AttentionProbe(cache, [Chunk(0, 0, self._sequences[0])], self._model.device, self._model.dtype)
        forward(step)
        if not self._attention <= set(step.layers):
            raise CannotBatch("its attention cannot be replaced")
        return [step.layers.get(layer, ()) for layer in range(max(step.layers, default=-1) + 1)]

    def _check_architecture(self) -> None:
        if not self._model._can_set_attn_implementation():
            raise CannotBatch("its attention cannot be replaced")
        if is_distributed(self._model):
            raise CannotBatch("its layers are on several devices")

    def _context_limits(self) -> Iterator[tuple[int, str]]:
        """Yield the numbers of tokens up to which the model computes as one without chunks or scaled positions."""
        config = self._config
        if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
            yield config.attention_chunk_size, "its attention is chunked"
        ropes = getattr(config, "rope_parameters", None) or {}
        for rope in (ropes, *ropes.values()):
            if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
                yield rope["original_max_position_embeddings"], "its positions depend on the longest sequence"
            if isinstance(rope, dict) and rope.get("rope_type") == "dynamic":
                yield config.max_position_embeddings, "its positions depend on the longest sequence"

    def _has_window(self) -> bool:
        """Return True if tokens of some layers attend only to a window of tokens before them."""
        config = self._config
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return window is not None and "sliding_attention" in kinds


class _AttentionProbe(PackedStep):
    """Step that notes keys and values of each layer, [1, heads, tokens, head size], instead of attending."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.layers: dict[int, tuple[torch.Tensor, ...]] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        if layer in self.layers:
            raise CannotBatch("its layers share a module of attention")
        self.layers[layer] = key[None], value[None]
        return value.new_zeros(query.shape[1], query.shape[0], value.shape[2])


def _parts(cache: DynamicCache) -> tuple[set[int], dict[StateKey, torch.Tensor]]:
    """Return the layers with keys and values, and all states. Raise CannotBatch if there are other parts."""
    layers: set[int] = set()
    states: dict[StateKey, torch.Tensor] = {}
    for index, layer in enumerate(cache.layers):
        if type(layer) not in CACHE_LAYERS:
            raise CannotBatch(f"its cache has other parts than keys, values and states: {type(layer).__name__}")
        if getattr(layer, "keys", None) is not None:
            layers.add(index)
        for kind in ("conv", "recurrent"):
            for number, state in getattr(layer, f"{kind}_states", {}).items():
                if state is not None:
                    states[kind, index, number] = state
    return layers, states


def is_distributed(model: Any) -> bool:
    """Return True if ``device_map`` placed the layers of ``model`` on several devices."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1
