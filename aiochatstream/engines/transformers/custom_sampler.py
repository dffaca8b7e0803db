"""Sampling by a custom TokenSampler."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch

from aiochatstream.engines.token_sampler import TokenSampler
from aiochatstream.engines.transformers.device import device_tensor
from aiochatstream.engines.transformers.logits import INVALID_LOGITS, apply_masks
from aiochatstream.engines.transformers.sampler import Sampler
from aiochatstream.engines.transformers.sampling import SampleFunction, finish_draw, sample


def sample_function(token_sampler: TokenSampler | None) -> SampleFunction:
    """Return a sample function that calls ``token_sampler``, or :func:`sample` if it is None.

    Raise TypeError unless it is a TokenSampler.
    """
    if token_sampler is None:
        return sample
    if not isinstance(token_sampler, TokenSampler):
        raise TypeError(f"token_sampler: must be a TokenSampler, not {token_sampler!r}.")

    @torch.inference_mode()
    def custom_sample(logits: torch.Tensor, samplers: Sequence[Sampler], seen: Sequence[Sequence[int]]) -> list[int]:
        rows, vocab_size = logits.shape
        copied = logits.to(torch.float32, copy=True)
        if not copied.amax(-1).isfinite().all():  # the maximum of a row with NaN is NaN
            raise FloatingPointError(INVALID_LOGITS)
        copied = apply_masks(copied, samplers, copied)
        result = token_sampler.sample(copied, seen, [sampler.params for sampler in samplers])
        numbers = result.tolist() if isinstance(result, torch.Tensor) else result
        tokens = [operator.index(number) for number in numbers]
        if len(tokens) != rows or not all(0 <= token < vocab_size for token in tokens):
            raise ValueError(f"token_sampler: must return {rows} ids below {vocab_size}, not {result!r}.")
        for row, sampler in enumerate(samplers):
            if sampler.matcher is not None and sampler.matcher.forced_token is not None:
                tokens[row] = sampler.matcher.forced_token
        for sampler, token in zip(samplers, tokens, strict=True):
            if sampler.matcher is not None and not sampler.matcher.allows(token):
                raise ValueError(f"token_sampler: must not return {token}, which the answer's constraint excludes.")
        return finish_draw(device_tensor(tokens, logits.device), logits, samplers)

    return custom_sample
