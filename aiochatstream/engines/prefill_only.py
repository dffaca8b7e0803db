"""Answers without tokens: the engine only reads the prompt."""

from __future__ import annotations

from aiochatstream.engines.base import Delta
from aiochatstream.engines.stream import OnDelta


def prefill_only(on_delta: OnDelta) -> OnDelta:
    """Return a function that calls ``on_delta`` with the deltas of the prompt, for example its logprobs.

    The token that follows the prefill, the only one of the answer, is discarded.
    """
    ended = False

    def pass_prompt(delta: Delta) -> None:
        nonlocal ended
        if ended:
            return
        ended = bool(
            delta.text or delta.thinking or delta.tool_calls or delta.token_count or delta.finish_reason is not None
        )
        on_delta(Delta("", (), "length", delta.cached_tokens, delta.prompt_tokens) if ended else delta)

    return pass_prompt
