"""Tokens chosen by a sampler that was handed in."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch

from aiochatstream.engines.token_sampler import TokenSampler
from aiochatstream.engines.transformers.grammars import constrained
from aiochatstream.engines.transformers.sampling import NOT_A_NUMBER, Sampler, sample

Draw = Callable[[torch.Tensor, Sequence[Sampler], Sequence[Sequence[int]]], list[int]]
"""What :func:`sample` is: from the logits, the samplers and the ids so far of all rows to their next tokens."""


def drawing(token_sampler: TokenSampler | None) -> Draw:
    """How tokens are drawn: by ``token_sampler``, or as :func:`sample` does where there is none.

    Raises TypeError for what is no TokenSampler.
    """
    if token_sampler is None:
        return sample
    if not isinstance(token_sampler, TokenSampler):
        raise TypeError(f"token_sampler: must be a TokenSampler, not {token_sampler!r}.")

    @torch.inference_mode()
    def draw(logits: torch.Tensor, samplers: Sequence[Sampler], seen: Sequence[Sequence[int]]) -> list[int]:
        rows, vocabulary = logits.shape
        given = logits.to(torch.float32, copy=True)
        if not given.amax(-1).isfinite().all():  # NaN where one of them is
            raise FloatingPointError(NOT_A_NUMBER)
        given = constrained(given, samplers, given)
        found = token_sampler.sample(given, seen, [sampler.params for sampler in samplers])
        numbers = found.tolist() if isinstance(found, torch.Tensor) else found
        tokens = [operator.index(number) for number in numbers]
        if len(tokens) != rows or not all(0 <= token < vocabulary for token in tokens):
            raise ValueError(f"token_sampler: must return {rows} ids below {vocabulary}, not {found!r}.")
        for sampler, token in zip(samplers, tokens, strict=True):
            if sampler.matcher is not None and not sampler.matcher.allows(token):
                raise ValueError(f"token_sampler: must not return {token}, which the answer's constraint excludes.")
        for sampler, token in zip(samplers, tokens, strict=True):
            sampler.advance(token)
        return tokens

    return draw
