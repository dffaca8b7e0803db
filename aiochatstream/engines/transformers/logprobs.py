"""Log probabilities of tokens in the model's own distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from aiochatstream.engines.base import TokenLogprob
from aiochatstream.engines.transformers.device import device_tensor
from aiochatstream.engines.transformers.logits import INVALID_LOGITS

ROWS = 32
"""Number of prompt tokens that are processed together: each needs a float32 copy of its distribution."""

MIN_LOGPROB = -9999.0
"""Logprob of a token with probability 0, for example an id that only pads the vocabulary: JSON has no infinity."""


@torch.inference_mode()
def logprobs_of(logits: torch.Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """Return the logprobs (log-softmax in float32) of each row's token and of its most likely tokens.

    :param logits: [rows, vocabulary], as the model returned them.
    :param tokens: token of each row.
    :param counts: number of most likely tokens to return for each row.
    """
    scores = logits.float().log_softmax(dim=-1).clamp(min=MIN_LOGPROB)
    best, ids = scores.topk(min(max(counts), scores.shape[-1]))
    own = scores.gather(-1, device_tensor(tokens, scores.device)[:, None])
    numbers = torch.cat((own, best), dim=-1)
    joined = torch.cat((numbers.view(torch.int32), ids.int()), dim=-1).cpu().numpy()  # the only wait for the device
    values, best_ids = np.split(joined, [numbers.shape[1]], axis=1)
    return [
        TokenLogprob(token, logprob, tuple(zip(row_ids[:count], top[:count], strict=True)))
        for token, count, (logprob, *top), row_ids in zip(
            tokens, counts, values.view(np.float32).tolist(), best_ids.tolist(), strict=True
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
