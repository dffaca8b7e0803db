"""How likely the model itself found the tokens that were drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from aiochatstream.engines.base import TokenLogprob
from aiochatstream.engines.transformers.device import tensor
from aiochatstream.engines.transformers.sampling import NOT_A_NUMBER

ROWS = 32
"""Of a prompt whose distributions are computed at a time: in float32, each takes the vocabulary's length."""

LEAST = -9999.0
"""The logprob of what has no probability at all, as of ids that only fill the vocabulary up: JSON has no infinity."""


@torch.inference_mode()
def logprobs_of(logits: torch.Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """The log-softmax of each row's logits, in float32: at its token, and at the likeliest ones.

    :param logits: [rows, vocabulary], as the model gave them.
    :param tokens: the token of each row.
    :param counts: how many of the likeliest are told of each row.
    """
    scores = logits.float().log_softmax(dim=-1).clamp(min=LEAST)
    best, ids = scores.topk(min(max(counts), scores.shape[-1]))
    own = scores.gather(-1, tensor(tokens, scores.device)[:, None])
    numbers = torch.cat((own, best), dim=-1).tolist()
    return [
        TokenLogprob(token, logprob, tuple(zip(row_ids[:count], top[:count], strict=True)))
        for token, count, (logprob, *top), row_ids in zip(tokens, counts, numbers, ids.tolist(), strict=True)
    ]


def prompt_logprobs_of(logits: torch.Tensor, tokens: Sequence[int], count: int) -> list[TokenLogprob]:
    """The logprobs of consecutive tokens of a prompt, as :func:`logprobs_of`, a few rows at a time.

    :param logits: [tokens, vocabulary], each of the place before the token.
    :param count: how many of the likeliest are told of each token.

    Raises FloatingPointError where logits are no numbers.
    """
    found: list[TokenLogprob] = []
    for begin in range(0, len(tokens), ROWS):
        few = tokens[begin : begin + ROWS]
        found += logprobs_of(logits[begin : begin + len(few)], few, [count] * len(few))
    if any(math.isnan(one.logprob) for one in found):
        raise FloatingPointError(NOT_A_NUMBER)
    return found
