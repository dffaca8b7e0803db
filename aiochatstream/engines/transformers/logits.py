"""What is done to the logits themselves, before any temperature: biases and penalties of all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import NoRepeatNGramLogitsProcessor

from aiochatstream.engines.transformers.device import tensor
from aiochatstream.params import GenerationParams

if TYPE_CHECKING:
    from aiochatstream.engines.transformers.sampling import Sampler

Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From scores and an amount for each of them to new scores."""

Amounts = tuple[int, Sequence[int], Sequence[float]]
"""A row, token ids, and an amount for each of these, or one for all."""


def has_penalties(params: GenerationParams) -> bool:
    """Whether :func:`penalised` changes anything for these."""
    return bool(_repeats(params) or params.logit_bias or _counts(params) or params.no_repeat_ngram_size)


def penalised(logits: torch.Tensor, samplers: Sequence[Sampler], seen: Sequence[Sequence[int]]) -> torch.Tensor:
    """``logits`` [rows, vocabulary] in float32, with what each row's parameters add and take; never changed in place.

    In the order of transformers' ``generate``: logit_bias, repetition_penalty, no_repeat_ngram_size, and then what one
    would hand to it as processors of one's own: presence_penalty and frequency_penalty.

    :param seen: the ids of each row so far, prompt and answer.
    """
    rows = [row for row, sampler in enumerate(samplers) if sampler.penalised]
    if not rows:
        return logits.float()
    logits = logits.to(torch.float32, copy=True)
    params = {row: samplers[row].params for row in rows}
    biases = [(row, list(one.logit_bias), list(one.logit_bias.values())) for row, one in params.items()]
    _change(logits, biases, torch.add)
    changes: dict[str, Change] = {"multiplicative": _divide, "subtractive": torch.sub}
    for method, change in changes.items():
        repeating = [row for row in rows if params[row].repetition_penalty_method == method and _repeats(params[row])]
        amounts = ((row, seen[row], [params[row].repetition_penalty]) for row in repeating)
        _change(logits, amounts, change)
    for row in rows:  # one after the other: the processor takes rows of one length
        if params[row].no_repeat_ngram_size:
            processor = NoRepeatNGramLogitsProcessor(params[row].no_repeat_ngram_size)
            logits[row] = processor(tensor(seen[row], logits.device)[None], logits[row : row + 1])[0]
    _change(logits, [_counted(row, samplers[row]) for row in rows if _counts(params[row])], torch.sub)
    return logits


def _change(logits: torch.Tensor, amounts: Iterable[Amounts], change: Change) -> None:
    """Change scores here and there, in all rows by one operation. An id that comes twice in a row is changed once."""
    rows: list[int] = []
    ids: list[int] = []
    values: list[float] = []
    lengths: list[int] = []
    value_lengths: list[int] = []
    for row, some_ids, some_values in amounts:
        if some_ids:
            rows.append(row)
            lengths.append(len(some_ids))
            ids += some_ids
            values += some_values
            value_lengths += [len(some_ids)] if len(some_values) == 1 else [1] * len(some_values)
    if ids:
        device = logits.device
        places = _repeated(tensor(rows, device), lengths, len(ids)), tensor(ids, device)
        spread = _repeated(tensor(values, device, logits.dtype), value_lengths, len(ids))
        logits[places] = change(logits[places], spread)


def _repeated(numbers: torch.Tensor, times: Sequence[int], size: int) -> torch.Tensor:
    return numbers.repeat_interleave(tensor(times, numbers.device), output_size=size)  # told the size, no GPU is asked


def _divide(scores: torch.Tensor, penalties: torch.Tensor) -> torch.Tensor:
    return torch.where(scores < 0, scores * penalties, scores / penalties)


def _repeats(params: GenerationParams) -> bool:
    return params.repetition_penalty != (1 if params.repetition_penalty_method == "multiplicative" else 0)


def _counts(params: GenerationParams) -> bool:
    return bool(params.presence_penalty or params.frequency_penalty)


def _counted(row: int, sampler: Sampler) -> Amounts:
    presence, frequency = sampler.params.presence_penalty, sampler.params.frequency_penalty
    return row, list(sampler.counts), [presence + frequency * count for count in sampler.counts.values()]
