"""Tests of answers without tokens."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from aiochatstream.engines.base import Delta, Prompt, TokenLogprob, ToolCall
from aiochatstream.engines.prefill_only import prefill_only
from aiochatstream.params import GenerationParams


@pytest.mark.parametrize(
    "first",
    [
        Delta("text", (5,)),
        Delta(thinking="thought", token_ids=(5,), thinking_tokens=1),
        Delta(thinking="thought"),
        Delta(tool_calls=(ToolCall("f", "{}", "f()"),)),
        Delta("", (5,), "stop"),
    ],
)
def test_the_first_token_is_discarded_and_the_rest_is_not_generated(first: Delta) -> None:
    counts = []

    def generate(prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        counts.append(params.max_new_tokens)
        yield Delta(logprobs=(TokenLogprob(1, 0.0),))
        yield first
        raise AssertionError

    params = GenerationParams().model_copy(update={"max_new_tokens": 0})
    deltas = list(prefill_only(generate, Prompt([], [1]), params))
    assert deltas == [Delta(logprobs=(TokenLogprob(1, 0.0),)), Delta(finish_reason="length")]
    assert counts == [1]
