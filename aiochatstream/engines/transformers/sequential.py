"""One answer after the other's step: for models whose rows cannot be computed in one forward pass."""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import DynamicCache

from aiochatstream.engines.base import StepKind, TokenLogprob
from aiochatstream.engines.transformers.custom_sampler import Draw
from aiochatstream.engines.transformers.grammars import Matcher
from aiochatstream.engines.transformers.logprobs import logprobs_of, prompt_logprobs_of
from aiochatstream.engines.transformers.sampling import Sampler, sample
from aiochatstream.params import GenerationParams

PREFILL_TOKENS = 256
"""A prompt is read in pieces of this many tokens, so that a client that leaves meanwhile is noticed."""


class Answer:
    """One answer under way. Nothing of its prompt was known before."""

    reused = 0

    def __init__(
        self,
        forward: Callable[[list[int], int], torch.Tensor],
        draw: Draw,
        prompt: list[int],
        sampler: Sampler,
        starts: Sequence[int],
    ) -> None:
        self._forward, self._draw, self._ids, self._sampler = forward, draw, list(prompt), sampler
        self._starts = starts
        self.logprobs: deque[TokenLogprob] = deque()
        self.prompt_logprobs: deque[TokenLogprob] = deque()

    def steps(self) -> Generator[int | None, None, None]:
        """Yield the tokens, max_new_tokens of them; None for a step without one."""
        sampler, params, ids = self._sampler, self._sampler.params, self._ids
        for start, end in pairwise([*self._starts, len(ids)]):
            logits = self._forward(ids[start:end], end - start if params.prompt_logprobs else 1)
            if params.prompt_logprobs:
                self.prompt_logprobs += prompt_logprobs_of(logits, ids[start + 1 : end + 1], params.logprobs or 0)
                logits = logits[-1:]
            yield None
        for left in reversed(range(params.max_new_tokens)):
            drawn = self._draw(logits, [sampler], [ids])
            if params.logprobs is not None:
                self.logprobs += logprobs_of(logits, drawn, [params.logprobs])
            ids += drawn
            yield ids[-1]
            if left:
                logits = self._forward(ids[-1:], 1)


class Alone:
    """Decodes each answer in the thread that asks for it, over transformers' own cache."""

    def __init__(self, model: Any, on_step: Callable[[StepKind, float], None], draw: Draw = sample) -> None:
        accepted = inspect.signature(model.forward).parameters
        names = [name for name in ("past_key_values", "cache_params") if name in accepted]
        if not names:
            raise ValueError(f"{type(model).__name__} has no cache of a kind that is known and cannot be served.")
        self._model, self._on_step, self._draw, self._cache_name = model, on_step, draw, names[0]
        self._keeps_logits = "logits_to_keep" in accepted
        cache = DynamicCache(config=model.config)
        self._in_pieces = not any(  # a state cannot be continued by several tokens
            hasattr(layer, "recurrent_states") for layer in cache.layers
        )
        self._forward_pass = threading.Lock()

    def answer(
        self,
        prompt: list[int],
        params: GenerationParams,
        matcher: Matcher | None = None,
        owner: str = "",
        shared: int = 0,
    ) -> Answer:
        """Begin an answer; it is made by whoever reads its :meth:`Answer.steps`."""
        first = size = PREFILL_TOKENS if self._in_pieces else len(prompt)
        if params.prompt_logprobs and not self._in_pieces:
            first, size = PREFILL_TOKENS, 1
        starts = [0, *range(first, len(prompt), size)]
        cache = DynamicCache(config=self._model.config)

        def forward(ids: list[int], keep: int) -> torch.Tensor:
            return self._forward(ids, cache, keep)

        return Answer(forward, self._draw, prompt, Sampler(params, matcher), starts)

    stopped = False
    """There is no thread of its own that could end."""

    def share(self, head: list[int]) -> None:
        """Nothing is kept."""

    def forget(self, owner: str) -> None:
        """Nothing is kept."""

    def figures(self) -> dict[str, float]:
        """Nothing to tell."""
        return {}

    @torch.inference_mode()
    def _forward(self, ids: list[int], cache: DynamicCache, keep: int) -> torch.Tensor:
        """Read ``ids`` after what is in ``cache``; return the last ``keep`` positions' logits [keep, vocabulary]."""
        with self._forward_pass:
            start = time.perf_counter()
            inputs = torch.tensor([ids], device=self._model.device)
            options = {"use_cache": True, self._cache_name: cache}
            if self._keeps_logits:
                options["logits_to_keep"] = keep
            output = self._model(input_ids=inputs, **options)
            logits: torch.Tensor = output.logits[0, -keep:]
            self._on_step("prefill" if len(ids) > 1 else "decode", time.perf_counter() - start)
        return logits
