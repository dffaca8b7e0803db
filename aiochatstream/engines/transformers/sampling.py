"""The next tokens, drawn from the logits of all rows at once."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import torch
from transformers import TypicalLogitsWarper

from aiochatstream.engines.transformers.device import tensor
from aiochatstream.engines.transformers.grammars import Matcher, constrained
from aiochatstream.engines.transformers.logits import has_penalties, penalised
from aiochatstream.params import GenerationParams

GREEDY_BELOW = 1e-4
"""A temperature under which dividing the logits by it could overflow."""

CANDIDATES = 1024
"""Of how many tokens top_p looks at the order at first: sorting a whole vocabulary takes longer than the model does."""

WEIGHT_BITS, NUMBER_BITS, LOW_BITS = 52, 32, 24
"""Draws are made in whole numbers: all weights of a row together have so many bits, the number drawn has so many, and
their product is computed in two parts, of which the lower one has so many bits of the weights."""

NOT_A_NUMBER = "The model produced logits that are NaN or infinite."


class Sampler:
    """How one answer's tokens are drawn: :func:`penalised`, temperature, top_k, top_p, min_p, typical_p, a seeded draw.
    With a ``matcher``, of the tokens that it allows.

    In the order and with the meaning of transformers' ``generate``. A draw takes one number of the answer's own
    sequence, so that neighbours change nothing. At a temperature below 1e-4 the likeliest token is taken.
    """

    def __init__(self, params: GenerationParams, matcher: Matcher | None = None) -> None:
        self.params, self.matcher = params, matcher
        self.greedy = params.temperature < GREEDY_BELOW
        self.penalised = has_penalties(params)
        self.whole = not params.top_k and params.top_p == 1
        self.limited = params.min_p > 0 or params.typical_p < 1
        self.counts: Counter[int] = Counter()
        """How often the answer has each token; empty where nobody asks."""
        self._random = random.Random(params.seed)  # noqa: S311 - the draws of a language model need no secrecy
        self.number = self._random.random()
        """What the next draw goes by, in [0, 1)."""

    def advance(self, token: int) -> None:
        """``token`` was drawn: go on to the next number."""
        if self.penalised:
            self.counts[token] += 1
        if self.matcher is not None:
            self.matcher.advance(token)
        if not self.greedy:
            self.number = self._random.random()


@torch.inference_mode()
def sample(logits: torch.Tensor, samplers: Sequence[Sampler], seen: Sequence[Sequence[int]]) -> list[int]:
    """The next token of each row. Raises with nothing changed, so that it can be tried again.

    :param logits: [rows, vocabulary], of the last position.
    :param samplers: one a row.
    :param seen: the ids of each row so far, prompt and answer.

    Raises FloatingPointError where logits are no numbers, InvalidValue where a constraint has become too complex.
    """
    logits = constrained(penalised(logits, samplers, seen), samplers, logits)
    drawn = _likeliest(logits)
    broken = ~logits.gather(-1, drawn[:, None])[:, 0].isfinite()
    for whole in (True, False):
        rows = [row for row, sampler in enumerate(samplers) if not sampler.greedy and sampler.whole is whole]
        if rows:
            chosen = [samplers[row] for row in rows]
            temperatures = _column([sampler.params.temperature for sampler in chosen], logits)
            places = tensor(rows, logits.device)
            scores = logits.index_select(0, places) / temperatures
            drawn[places] = _draw_of_all(scores, chosen) if whole else _draw_of_best(scores, chosen)
    tokens: list[int]
    tokens, faults = torch.stack((drawn, broken.long())).tolist()  # all that is ever waited for
    if any(faults):
        raise FloatingPointError(NOT_A_NUMBER)
    for sampler, token in zip(samplers, tokens, strict=True):
        sampler.advance(token)
    return tokens


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The id of each row; of what is no number, where there is one. (On a CPU, numpy's is quicker.)"""
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(dim=-1)


def _draw_of_all(scores: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Draw where top_k and top_p leave all tokens. ``scores``: [rows, vocabulary]."""
    return _draw(_limited(scores, samplers).softmax(dim=-1), samplers)


def _draw_of_best(scores: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Draw where top_k or top_p leave only the likeliest tokens. ``scores``: [rows, vocabulary].

    A CPU sorts a whole vocabulary only for rows that are so flat that the likeliest tokens are not enough.
    """
    vocabulary = scores.shape[-1]
    counts = [sampler.params.top_k or CANDIDATES for sampler in samplers]
    count = min(max(counts), vocabulary) if scores.device.type == "cpu" else vocabulary
    drawn, flat = _draw_of_candidates(scores, samplers, count)
    if count < vocabulary and (rows := flat.nonzero()[:, 0].tolist()):
        drawn[rows], _ = _draw_of_candidates(scores[rows], [samplers[row] for row in rows], vocabulary)
    return drawn


def _draw_of_candidates(
    scores: torch.Tensor, samplers: Sequence[Sampler], count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw of the likeliest ``count`` tokens of each row; return the tokens, and for which rows these are too few."""
    vocabulary = scores.shape[-1]
    top_k = _column([min(sampler.params.top_k or vocabulary, vocabulary) for sampler in samplers], scores)
    top_p = _column([sampler.params.top_p for sampler in samplers], scores)
    best, ids = scores.topk(count)
    weights = best.where(torch.arange(count, device=scores.device) < top_k, -torch.inf)
    total = torch.where(top_k < vocabulary, weights.logsumexp(-1, keepdim=True), scores.logsumexp(-1, keepdim=True))
    weights = (weights - total).exp()
    sums = weights.cumsum(dim=-1)
    flat = ((sums[:, -1:] < top_p) & (top_k > count))[:, 0]
    kept = (sums - weights < top_p) | (top_p == 1)
    kept[:, 0] = True  # also where top_p is so small that it is 0 in this precision
    weights = weights.where(kept, 0)
    if any(sampler.limited for sampler in samplers):
        weights = weights.where(_limited(best.where(weights > 0, -torch.inf), samplers) > -torch.inf, 0)
    return ids.gather(-1, _draw(weights, samplers)[:, None])[:, 0], flat


def _limited(scores: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """``scores`` [rows, places] without what min_p, and then typical_p, leave out. What was left out before is -inf."""
    if any(sampler.params.min_p for sampler in samplers):
        parts = [math.log(one.params.min_p) if one.params.min_p else -math.inf for one in samplers]
        least = scores.amax(dim=-1, keepdim=True) + _column(parts, scores)
        scores = scores.masked_fill(scores < least, -torch.inf)
    for mass in {sampler.params.typical_p for sampler in samplers} - {1}:
        rows = [row for row, sampler in enumerate(samplers) if sampler.params.typical_p == mass]
        places = tensor(rows, scores.device)
        scores = scores.index_copy(0, places, TypicalLogitsWarper(mass)(None, scores.index_select(0, places)))
    return scores


def _draw(weights: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """For each row, the place in its weights [rows, places] that its next number falls on.

    Whole numbers are added up exactly on every device (not all have float64), and no place without a weight is drawn.
    """
    sums = (weights / weights.sum(-1, keepdim=True)).mul_(2.0**WEIGHT_BITS).long().cumsum_(dim=-1)
    numbers = tensor([int(sampler.number * 2**NUMBER_BITS) for sampler in samplers], weights.device)[:, None]
    high, low = sums[:, -1:] >> LOW_BITS, sums[:, -1:] & (2**LOW_BITS - 1)
    reached = (high * numbers + (low * numbers >> LOW_BITS)) >> (NUMBER_BITS - LOW_BITS)
    return torch.searchsorted(sums, reached, right=True)[:, 0].clamp(max=weights.shape[-1] - 1)


def _column(numbers: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return tensor(numbers, like.device, like.dtype)[:, None]
