"""Sequential decoding, for models that cannot be batched."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Any

import torch

from aiochatstream.engines.base import StepKind, TokenLogprob
from aiochatstream.engines.transformers.answer_phase import AnswerPhase
from aiochatstream.engines.transformers.grammars import Matcher
from aiochatstream.engines.transformers.logprobs import prompt_logprobs_of
from aiochatstream.engines.transformers.plain_forward import PlainForward
from aiochatstream.engines.transformers.sampler import Sampler
from aiochatstream.engines.transformers.sampling import SampleFunction, sample
from aiochatstream.engines.transformers.step_errors import is_usable
from aiochatstream.params import GenerationParams

PREFILL_TOKENS = 256
"""Maximum number of prompt tokens per step, so that a disconnect is noticed during the prefill."""

CHECK_IDS = list(range(3, 23))
"""Tokens with which a model shows whether it can compute the chunks of a prompt one after the other."""


class SequentialAnswer:
    """One answer. It reuses no keys and values of earlier prompts."""

    cached_tokens = 0

    def __init__(
        self,
        forward: Callable[[list[int], int, int], torch.Tensor],
        sample_tokens: SampleFunction,
        prompt: list[int],
        sampler: Sampler,
        starts: Sequence[int],
    ) -> None:
        self._forward, self._sample, self._ids, self._sampler = forward, sample_tokens, list(prompt), sampler
        self._starts = starts
        self.logprobs: deque[TokenLogprob] = deque()
        self.prompt_logprobs: deque[TokenLogprob] = deque()

    def steps(self) -> Generator[int | None, None, None]:
        """Yield the tokens, ``max_new_tokens`` of them, and None for each step without one."""
        sampler, params, ids = self._sampler, self._sampler.params, self._ids
        for start, end in pairwise([*self._starts, len(ids)]):
            logits = self._forward(ids[start:end], start, end - start if params.prompt_logprobs else 1)
            if params.prompt_logprobs:
                self.prompt_logprobs += prompt_logprobs_of(logits, ids[start + 1 : end + 1], params.logprobs or 0)
                logits = logits[-1:]
            yield None
        for left in reversed(range(params.max_new_tokens)):
            ids += self._sample(logits, [sampler], [ids])
            if sampler.logprob is not None:
                self.logprobs.append(sampler.logprob)
            yield ids[-1]
            if left:
                logits = self._forward(ids[-1:], len(ids) - 1, 1)


class SequentialDecoder:
    """Decodes each answer in its caller's thread, one forward pass at a time, with transformers' own cache.

    Raises ValueError if the model has no known kind of cache.
    """

    def __init__(
        self, model: Any, on_step: Callable[[StepKind, float], None], sample_tokens: SampleFunction = sample
    ) -> None:
        self._forward, self._on_step, self._sample = PlainForward(model), on_step, sample_tokens
        has_states = any(hasattr(layer, "recurrent_states") for layer in self._forward.new_cache().layers)
        self._supports_chunks = not has_states or self._forward.continues_states(CHECK_IDS)
        self._device = model.device
        self._model_lock = threading.Lock()
        self.stopped = False
        """True if the device cannot compute any more."""

    def submit(
        self,
        prompt: list[int],
        params: GenerationParams,
        matcher: Matcher | AnswerPhase | None = None,
        owner: str = "",
        shared_tokens: int = 0,
    ) -> SequentialAnswer:
        """Create an answer, which is computed while its ``steps()`` are read."""
        first = size = PREFILL_TOKENS if self._supports_chunks else len(prompt)
        if params.prompt_logprobs and not self._supports_chunks:
            first, size = PREFILL_TOKENS, 1
        starts = [0, *range(first, len(prompt), size)]
        cache = self._forward.new_cache()

        def forward(ids: list[int], start: int, keep: int) -> torch.Tensor:
            with self._model_lock:
                began = time.perf_counter()
                try:
                    logits = self._forward(ids, cache, start, keep)
                except Exception:
                    self.stopped = not is_usable(self._device)
                    raise
                self._on_step("prefill" if len(ids) > 1 else "decode", time.perf_counter() - began)
            return logits

        return SequentialAnswer(forward, self._sample, prompt, Sampler(params, matcher), starts)

    def share(self, prefix: list[int]) -> None:
        """Do nothing: there is no prefix cache."""

    def forget(self, owner: str) -> None:
        """Do nothing: there is no prefix cache."""

    def metrics(self) -> dict[str, float]:
        """Return no values."""
        return {}


def cache_token_bytes(config: Any, dtype: torch.dtype) -> int | None:
    """Return an estimate of the bytes of a token's keys and values; None if the model has no attention.

    :param config: configuration of the text model.
    """
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return None
    size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    return 2 * int(config.num_hidden_layers) * kv_heads * size * dtype.itemsize
