"""How likely the model itself found the tokens that were drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aiochatstream.engines.base import TokenLogprob
from aiochatstream.engines.transformers.transfer import tensor


@torch.inference_mode()
def logprobs_of(logits: torch.Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """The log-softmax of each row's logits, in float32: at its token, and at the likeliest ones.

    :param logits: [rows, vocabulary], as the model gave them.
    :param tokens: the token of each row.
    :param counts: how many of the likeliest are told of each row.
    """
    scores = logits.float().log_softmax(dim=-1)
    best, ids = scores.topk(min(max(counts), scores.shape[-1]))
    own = scores.gather(-1, tensor(tokens, scores.device)[:, None])
    numbers = torch.cat((own, best), dim=-1).tolist()
    return [
        TokenLogprob(token, logprob, tuple(zip(row_ids[:count], top[:count], strict=True)))
        for token, count, (logprob, *top), row_ids in zip(tokens, counts, numbers, ids.tolist(), strict=True)
    ]
