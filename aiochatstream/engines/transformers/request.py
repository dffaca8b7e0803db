"""A request in the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from queue import SimpleQueue

import torch

from aiochatstream.engines.base import TokenLogprob
from aiochatstream.engines.transformers.answer_phase import AnswerPhase
from aiochatstream.engines.transformers.grammars import Matcher
from aiochatstream.engines.transformers.prefix_cache import CachedBlock
from aiochatstream.engines.transformers.sampler import Sampler
from aiochatstream.params import GenerationParams


class Request:
    """State of one answer.

    ids: prompt and answer so far.
    end: maximum number of ids.
    computed_tokens: number of ids whose keys and values are in the row.
    cached_tokens: number of ids whose keys and values were loaded from the prefix cache.
    scored_tokens: number of ids at the beginning that need no prompt logprobs, or have them.
    owner: only this user's later prompts may reuse the keys and values.
    shared_tokens: number of ids at the beginning for which the shared prefix may be used.
    cacheable: False if the keys and values must not be stored in the prefix cache.
    row: row of the KV cache; -1 while waiting.
    blocks: blocks of the KV cache that only this request uses, after ``cached_blocks``.
    cached_blocks: blocks of the prefix cache at the beginning.
    logits: logits [1, vocabulary] of the next token, while the mask of its grammar is computed.
    output: token ids, None for each step without a token, and an exception if the request fails.
    logprobs: logprobs of the tokens, if requested; the reader of the tokens removes them.
    prompt_logprobs: the same for the prompt's tokens from the second one on.
    """

    def __init__(
        self,
        prompt: list[int],
        params: GenerationParams,
        matcher: Matcher | AnswerPhase | None = None,
        owner: str = "",
        shared_tokens: int = 0,
    ) -> None:
        self.ids = list(prompt)
        self.owner, self.shared_tokens = owner, shared_tokens
        self.cacheable = True
        self.end = len(prompt) + params.max_new_tokens
        self.sampler = Sampler(params, matcher)
        self.row = -1
        self.blocks: list[int] = []
        self.cached_blocks: Sequence[CachedBlock] = ()
        self.logits: torch.Tensor | None = None
        self.computed_tokens = self.cached_tokens = 0
        self.scored_tokens = 1
        self.cancelled = self.failed = False
        self.output: SimpleQueue[int | Exception | None] = SimpleQueue()
        self.logprobs: deque[TokenLogprob] = deque()
        self.prompt_logprobs: deque[TokenLogprob] = deque()

    @property
    def params(self) -> GenerationParams:
        return self.sampler.params

    @property
    def remaining_tokens(self) -> int:
        """Number of ids that are not computed."""
        return len(self.ids) - self.computed_tokens

    @property
    def decoding(self) -> bool:
        """True if only the newest token is not computed."""
        return self.remaining_tokens == 1

    @property
    def waits_for_mask(self) -> bool:
        """True if nothing can be done until the mask of the next token is ready."""
        return self.logits is not None and not self.finished and not self.sampler.ready

    @property
    def finished(self) -> bool:
        """True if the request is cancelled, has failed or has all its tokens."""
        return self.cancelled or len(self.ids) == self.end

    @property
    def has_output(self) -> bool:
        """True if tokens were sampled from all logits, which implies that they were finite."""
        return self.logits is None and len(self.ids) + self.params.max_new_tokens > self.end

    def steps(self) -> Generator[int | None, None, None]:
        """Yield the tokens, ``max_new_tokens`` of them, and None for each step without one.

        Closing the generator cancels the request. Raise the error of a failed request.
        """
        try:
            for _ in range(self.params.max_new_tokens):
                while (step := self.output.get()) is None:
                    yield None
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.cancelled = True

    def fail(self, error: Exception) -> None:
        """End the request with ``error``."""
        self.cancelled = self.failed = True
        self.output.put(error)
