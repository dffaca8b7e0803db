"""Sampling of the next tokens from the logits of all rows at once.

In the order of transformers' ``generate`` and with its meaning: penalties, temperature, top_k, top_p, min_p, typical_p,
and a draw with the request's seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from transformers import TypicalLogitsWarper

from aiochatstream.engines.base import TokenLogprob
from aiochatstream.engines.transformers.device import device_tensor
from aiochatstream.engines.transformers.logits import INVALID_LOGITS, apply_masks, apply_penalties
from aiochatstream.engines.transformers.logprobs import read_scores, score_tokens
from aiochatstream.engines.transformers.sampler import Sampler

CANDIDATES = 1024
"""Number of tokens that top_p sorts first: sorting a whole vocabulary takes longer than the model's forward pass."""

WEIGHT_BITS, NUMBER_BITS, LOW_BITS = 52, 32, 24
"""Bits of integers in a draw: the sum of all weights of a row, the random number, and the lower of the two parts of the
sum. Their product is computed in these two parts to avoid overflow."""

INVALID = -1
"""Id in place of a token where logits are not finite."""

SampleFunction = Callable[[torch.Tensor, Sequence[Sampler], Sequence[Sequence[int]]], list[int]]
"""Type of :func:`sample`: a function of logits, samplers and token ids of all rows that returns the next tokens."""


@torch.inference_mode()
def sample(logits: torch.Tensor, samplers: Sequence[Sampler], seen: Sequence[Sequence[int]]) -> list[int]:
    """Return the next token of each row.

    :param logits: [rows, vocabulary], of the last position.
    :param samplers: one for each row; advanced, with the logprob if it is wanted, unless an error is raised.
    :param seen: token ids of each row so far, prompt and answer.

    Raise FloatingPointError if logits are not finite, InvalidValue if a grammar has become too complex. No sampler has
    changed then, so the call can be repeated.
    """
    logits_of_model = logits
    logits = apply_masks(apply_penalties(logits, samplers, seen), samplers, logits)
    drawn = _argmax(logits)
    invalid = ~logits.gather(-1, drawn[:, None])[:, 0].isfinite()
    for uses_all_tokens in (True, False):
        rows = [
            row
            for row, sampler in enumerate(samplers)
            if not sampler.greedy and sampler.uses_all_tokens is uses_all_tokens
        ]
        if rows:
            chosen = [samplers[row] for row in rows]
            temperatures = _column([sampler.params.temperature for sampler in chosen], logits)
            places = device_tensor(rows, logits.device)
            scores = logits.index_select(0, places) / temperatures
            drawn[places] = _draw_from_all(scores, chosen) if uses_all_tokens else _draw_from_best(scores, chosen)
    return finish_draw(drawn.where(~invalid, INVALID), logits_of_model, samplers)


def finish_draw(drawn: torch.Tensor, logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Return the drawn tokens and advance ``samplers``.

    :param drawn: [rows], :data:`INVALID` for rows whose logits are not finite.
    :param logits: [rows, vocabulary], as the model returned them.

    Raise FloatingPointError if a token is invalid; no sampler has changed then.
    """
    scored = [row for row, sampler in enumerate(samplers) if sampler.params.logprobs is not None]
    counts = [samplers[row].params.logprobs or 0 for row in scored]
    results = [drawn.int()]
    if scored:
        places = device_tensor(scored, drawn.device)
        scores = score_tokens(logits[places], drawn[places].clamp(min=0), max(counts))
        results.append(scores.flatten())
    numbers = torch.cat(results).cpu().numpy()  # the only wait for the device
    tokens: list[int] = numbers[: len(samplers)].tolist()
    if INVALID in tokens:
        raise FloatingPointError(INVALID_LOGITS)
    logprobs: dict[int, TokenLogprob] = {}
    if scored:
        rows = numbers[len(samplers) :].reshape(len(scored), -1)
        logprobs = dict(zip(scored, read_scores(rows, [tokens[row] for row in scored], counts), strict=True))
    for row, (sampler, token) in enumerate(zip(samplers, tokens, strict=True)):
        sampler.advance(token, logprobs.get(row))
    return tokens


def _argmax(logits: torch.Tensor) -> torch.Tensor:
    """Return the most likely token of each row; the first NaN if there is one. (numpy is faster on a CPU.)"""
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(dim=-1)


def _draw_from_all(scores: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Draw for rows without top_k and top_p. ``scores``: [rows, vocabulary]."""
    return draw(_apply_limits(scores, samplers).softmax(dim=-1), samplers)


def _draw_from_best(scores: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Draw for rows with top_k or top_p. ``scores``: [rows, vocabulary].

    A CPU sorts the whole vocabulary only for rows so flat that the candidates do not reach top_p.
    """
    vocab_size = scores.shape[-1]
    counts = [sampler.params.top_k or CANDIDATES for sampler in samplers]
    count = min(max(counts), vocab_size) if scores.device.type == "cpu" else vocab_size
    drawn, flat = _draw_from_candidates(scores, samplers, count)
    if count < vocab_size and (rows := flat.nonzero()[:, 0].tolist()):
        drawn[rows], _ = _draw_from_candidates(scores[rows], [samplers[row] for row in rows], vocab_size)
    return drawn


def _draw_from_candidates(
    scores: torch.Tensor, samplers: Sequence[Sampler], count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the ``count`` most likely tokens of each row; return the tokens, and the rows that need more."""
    vocab_size = scores.shape[-1]
    top_k = _column([min(sampler.params.top_k or vocab_size, vocab_size) for sampler in samplers], scores)
    top_p = _column([sampler.params.top_p for sampler in samplers], scores)
    best, ids = scores.topk(count)
    weights = best.where(torch.arange(count, device=scores.device) < top_k, -torch.inf)
    total = torch.where(top_k < vocab_size, weights.logsumexp(-1, keepdim=True), scores.logsumexp(-1, keepdim=True))
    weights = (weights - total).exp()
    sums = weights.cumsum(dim=-1)
    flat = ((sums[:, -1:] < top_p) & (top_k > count))[:, 0]
    in_top_p = (sums - weights < top_p) | (top_p == 1)
    in_top_p[:, 0] = True  # even if top_p is so small that it is 0 in this precision
    weights = weights.where(in_top_p, 0)
    if any(sampler.has_probability_limits for sampler in samplers):
        weights = weights.where(_apply_limits(best.where(weights > 0, -torch.inf), samplers) > -torch.inf, 0)
    return ids.gather(-1, draw(weights, samplers)[:, None])[:, 0], flat


def _apply_limits(scores: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Return ``scores`` [rows, tokens] with -inf for tokens that min_p, and then typical_p, exclude."""
    if any(sampler.params.min_p for sampler in samplers):
        ratios = [math.log(sampler.params.min_p) if sampler.params.min_p else -math.inf for sampler in samplers]
        minimum = scores.amax(dim=-1, keepdim=True) + _column(ratios, scores)
        scores = scores.masked_fill(scores < minimum, -torch.inf)
    for mass in {sampler.params.typical_p for sampler in samplers} - {1}:
        rows = [row for row, sampler in enumerate(samplers) if sampler.params.typical_p == mass]
        places = device_tensor(rows, scores.device)
        scores = scores.index_copy(0, places, TypicalLogitsWarper(mass)(None, scores.index_select(0, places)))
    return scores


def draw(weights: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Return for each row the index in its weights [rows, tokens] that its random number selects.

    Sums of integers are exact on every device (some have no float64); an index without weight is never drawn.
    """
    sums = (weights / weights.sum(-1, keepdim=True)).mul_(2.0**WEIGHT_BITS).long().cumsum_(dim=-1)
    numbers = device_tensor([int(sampler.number * 2**NUMBER_BITS) for sampler in samplers], weights.device)[:, None]
    high, low = sums[:, -1:] >> LOW_BITS, sums[:, -1:] & (2**LOW_BITS - 1)
    selected = (high * numbers + (low * numbers >> LOW_BITS)) >> (NUMBER_BITS - LOW_BITS)
    return torch.searchsorted(sums, selected, right=True)[:, 0].clamp(max=weights.shape[-1] - 1)


def _column(numbers: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return device_tensor(numbers, like.device, like.dtype)[:, None]
