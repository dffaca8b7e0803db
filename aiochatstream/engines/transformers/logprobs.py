"""Log probabilities of tokens in the model's own distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from aiochatstream.engines.base import TokenLogprob
from aiochatstream.engines.transformers.device import device_tensor
from aiochatstream.engines.transformers.logits import INVALID_LOGITS

ROWS = 32
"""Number of prompt tokens that are processed together: each needs a float32 copy of its distribution."""

MIN_LOGPROB = -9999.0
"""Logprob of a token with probability 0, for example an id that only pads the vocabulary: JSON has no infinity."""


def logprobs_of(logits: torch.Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """Return the logprobs (log-softmax in float32) of each row's token and of its most likely tokens.

    :param logits: [rows, vocabulary], as the model returned them.
    :param tokens: token of each row.
    :param counts: number of most likely tokens to return for each row.
    """
    scores = score_tokens(logits, device_tensor(tokens, logits.device), max(counts))
    return read_scores(scores.cpu().numpy(), tokens, counts)


@torch.inference_mode()
def score_tokens(logits: torch.Tensor, tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Return the logprobs of each row's token and of its ``count`` most likely ones, and then the ids of these.

    The host does not wait for the device. Logprobs are float32 viewed as int32.

    :param tokens: [rows]
    :returns: [rows, 1 + 2 * count], int32, with a smaller count for a smaller vocabulary.
    """
    scores = logits.float().log_softmax(dim=-1).clamp(min=MIN_LOGPROB)
    best, ids = scores.topk(min(count, scores.shape[-1]))
    own = scores.gather(-1, tokens[:, None])
    return torch.cat((torch.cat((own, best), dim=-1).view(torch.int32), ids.int()), dim=-1)


def read_scores(scores: NDArray[np.int32], tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """Return the logprobs in the result of :func:`score_tokens`, at most ``counts`` of the most likely ones per row."""
    values, best_ids = np.split(scores, [scores.shape[1] // 2 + 1], axis=1)
    return [
        TokenLogprob(token, logprob, tuple(zip(row_ids[:count], top[:count], strict=True)))
        for token, count, (logprob, *top), row_ids in zip(
            tokens, counts, np.ascontiguousarray(values).view(np.float32).tolist(), best_ids.tolist(), strict=True
        )
    ]


def prompt_logprobs_of(logits: torch.Tensor, tokens: Sequence[int], count: int) -> list[TokenLogprob]:
    """Return the logprobs of consecutive prompt tokens, like :func:`logprobs_of`, a few rows at a time.

    :param logits: [tokens, vocabulary], each of the position before the token.
    :param count: number of most likely tokens to return for each token.

    Raise FloatingPointError if logits are not finite.
    """
    logprobs: list[TokenLogprob] = []
    for start in range(0, len(tokens), ROWS):
        part = tokens[start : start + ROWS]
        logprobs += logprobs_of(logits[start : start + len(part)], part, [count] * len(part))
    if any(math.isnan(logprob.logprob) for logprob in logprobs):
        raise FloatingPointError(INVALID_LOGITS)
    return logprobs
