"""Answers without tokens: the engine only reads the prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from contextlib import closing

from aiochatstream.engines.base import Delta, Prompt
from aiochatstream.params import GenerationParams


def prefill_only(
    generate: Callable[[Prompt, GenerationParams], Generator[Delta, None, None]],
    prompt: Prompt,
    params: GenerationParams,
) -> Generator[Delta, None, None]:
    """Yield the deltas of the prompt, for example its logprobs, and discard the token that follows the prefill."""
    with closing(generate(prompt, params.model_copy(update={"max_new_tokens": 1}))) as deltas:
        for delta in deltas:
            if delta.text or delta.token_ids or delta.finish_reason:
                yield dataclasses.replace(delta, text="", token_ids=(), logprobs=(), finish_reason="length")
                return
            yield delta
