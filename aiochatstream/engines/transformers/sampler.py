"""The sampling state of a request."""

from __future__ import annotations

import random
from collections import Counter

from aiochatstream.engines.base import TokenLogprob
from aiochatstream.engines.transformers.answer_phase import AnswerPhase
from aiochatstream.engines.transformers.grammars import Matcher
from aiochatstream.params import GenerationParams

GREEDY_BELOW = 1e-4
"""Temperatures below this are greedy: logits divided by them could overflow."""


class Sampler:
    """Parameters, token counts and random numbers of one answer.

    Each draw uses one number of the answer's own sequence, so that other rows do not influence it.
    """

    def __init__(self, params: GenerationParams, matcher: Matcher | AnswerPhase | None = None) -> None:
        self.params, self.matcher = params, matcher
        self.greedy = params.temperature < GREEDY_BELOW
        self.has_repetition_penalty = params.repetition_penalty != (
            1 if params.repetition_penalty_method == "multiplicative" else 0
        )
        self.has_count_penalties = bool(params.presence_penalty or params.frequency_penalty)
        self.has_penalties = bool(
            self.has_repetition_penalty or params.logit_bias or self.has_count_penalties or params.no_repeat_ngram_size
        )
        self.uses_all_tokens = not params.top_k and params.top_p == 1
        self.has_probability_limits = params.min_p > 0 or params.typical_p < 1
        self.counts: Counter[int] = Counter()
        """Number of occurrences of each token in the answer; empty if there are no penalties."""
        self._random = random.Random(params.seed)  # noqa: S311 - a language model's draws need no secrecy
        self.number = self._random.random()
        """Random number of the next draw, in [0, 1)."""
        self.logprob: TokenLogprob | None = None
        """Logprob of the newest token, if ``params.logprobs`` is set."""

    @property
    def ready(self) -> bool:
        """True if the next token can be drawn without waiting for its mask."""
        return self.matcher is None or self.matcher.ready

    def advance(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Append ``token`` and advance to the next random number."""
        self.logprob = logprob
        if self.has_penalties:
            self.counts[token] += 1
        if self.matcher is not None:
            self.matcher.advance(token)
        if not self.greedy:
            self.number = self._random.random()
