"""Logit biases, penalties and grammar masks, for all rows at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from aiochatstream.engines.transformers.device import device_tensor
from aiochatstream.engines.transformers.sampler import Sampler

INVALID_LOGITS = "The model produced NaN or infinite logits."

Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Function of scores and an amount for each of them that returns new scores."""

Amounts = tuple[int, Sequence[int], Sequence[float]]
"""A row, token ids, and an amount for each of them or a single amount for all."""


def apply_penalties(logits: torch.Tensor, samplers: Sequence[Sampler], seen: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return ``logits`` [rows, vocabulary] in float32, with biases and penalties. The input is not modified.

    Applied in the order of transformers' ``generate``: logit_bias, repetition_penalty, no_repeat_ngram_size, and then
    presence_penalty and frequency_penalty, which correspond to custom processors there.

    :param seen: token ids of each row so far, prompt and answer.
    """
    rows = [row for row, sampler in enumerate(samplers) if sampler.has_penalties]
    if not rows:
        return logits.float()
    logits = logits.to(torch.float32, copy=True)
    params = {row: samplers[row].params for row in rows}
    biases = [(row, list(params[row].logit_bias), list(params[row].logit_bias.values())) for row in rows]
    _update(logits, biases, torch.add)
    operations: dict[str, Operation] = {"multiplicative": _divide, "subtractive": torch.sub}
    for method, operation in operations.items():
        penalised = [
            row
            for row in rows
            if params[row].repetition_penalty_method == method and samplers[row].has_repetition_penalty
        ]
        amounts = ((row, seen[row], [params[row].repetition_penalty]) for row in penalised)
        _update(logits, amounts, operation)
    repeating = [(row, _repeating_tokens(seen[row], params[row].no_repeat_ngram_size), [-math.inf]) for row in rows]
    _update(logits, repeating, _replace)
    counted = [_count_penalties(row, samplers[row]) for row in rows if samplers[row].has_count_penalties]
    _update(logits, counted, torch.sub)
    return logits


@torch.inference_mode()
def apply_masks(logits: torch.Tensor, samplers: Sequence[Sampler], raw_logits: torch.Tensor) -> torch.Tensor:
    """Return ``logits`` [rows, vocabulary] in float32, with -inf for tokens that a row's matcher excludes.

    The input is not modified.

    :param raw_logits: the model's logits, for rows in which penalties have excluded all tokens that the matcher allows.
    """
    matchers = {row: sampler.matcher for row, sampler in enumerate(samplers) if sampler.matcher is not None}
    masks = {row: mask for row, matcher in matchers.items() if (mask := matcher.mask) is not None}
    if not masks:
        return logits
    stacked = np.stack(list(masks.values())).view(np.uint8)
    bits = np.unpackbits(stacked, axis=1, count=logits.shape[-1], bitorder="little")
    excluded = device_tensor(bits == 0, logits.device, torch.bool)
    rows = device_tensor(list(masks), logits.device)
    masked = logits.index_select(0, rows).masked_fill(excluded, -torch.inf)
    none_left = masked.amax(dim=-1, keepdim=True) == -torch.inf
    fallback = raw_logits.index_select(0, rows).float().masked_fill(excluded, -torch.inf)
    return logits.index_copy(0, rows, torch.where(none_left, fallback, masked))


def _update(logits: torch.Tensor, amounts: Iterable[Amounts], operation: Operation) -> None:
    """Update scores of all rows by one operation. An id that occurs twice in a row is updated once."""
    rows: list[int] = []
    ids: list[int] = []
    values: list[float] = []
    lengths: list[int] = []
    value_lengths: list[int] = []
    for row, row_ids, row_values in amounts:
        if row_ids:
            rows.append(row)
            lengths.append(len(row_ids))
            ids += row_ids
            values += row_values
            value_lengths += [len(row_ids)] if len(row_values) == 1 else [1] * len(row_values)
    if ids:
        device = logits.device
        places = _repeat(device_tensor(rows, device), lengths, len(ids)), device_tensor(ids, device)
        repeated = _repeat(device_tensor(values, device, logits.dtype), value_lengths, len(ids))
        logits[places] = operation(logits[places], repeated)


def _repeat(numbers: torch.Tensor, times: Sequence[int], size: int) -> torch.Tensor:
    # with a known output size, the host does not wait for the device
    return numbers.repeat_interleave(device_tensor(times, numbers.device), output_size=size)


def _divide(scores: torch.Tensor, penalties: torch.Tensor) -> torch.Tensor:
    return torch.where(scores < 0, scores * penalties, scores / penalties)


def _replace(scores: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    return amounts


def _repeating_tokens(ids: Sequence[int], size: int) -> Sequence[int]:
    """Return the tokens that would repeat ``size`` tokens of ``ids``; none if ``size`` is 0."""
    if not size:
        return ()
    before = ids[len(ids) - size + 1 :]
    return [ids[at + size - 1] for at in range(len(ids) - size + 1) if ids[at : at + size - 1] == before]


def _count_penalties(row: int, sampler: Sampler) -> Amounts:
    presence, frequency = sampler.params.presence_penalty, sampler.params.frequency_penalty
    return row, list(sampler.counts), [presence + frequency * count for count in sampler.counts.values()]
