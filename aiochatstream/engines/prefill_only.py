"""Answers without tokens: the engine only reads the prompt."""

from __future__ import annotations

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
            if delta.text or delta.thinking or delta.tool_calls or delta.token_ids or delta.finish_reason:
                yield Delta("", (), "length", delta.cached_tokens, delta.prompt_tokens)
                return
            yield delta
