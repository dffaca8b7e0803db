"""Tests of answers without tokens."""

from __future__ import annotations

import pytest

from aiochatstream.engines.base import Delta, TokenLogprob, ToolCall
from aiochatstream.engines.prefill_only import prefill_only


@pytest.mark.parametrize(
    "first",
    [
        Delta("text", (5,)),
        Delta(tokens=1),
        Delta(thinking="thought", token_ids=(5,), thinking_tokens=1),
        Delta(thinking="thought"),
        Delta(tool_calls=(ToolCall("f", "{}", "f()"),)),
        Delta("", (5,), "stop"),
    ],
)
def test_the_first_token_is_discarded_and_no_delta_follows(first: Delta) -> None:
    deltas: list[Delta] = []
    push = prefill_only(deltas.append)
    for delta in (Delta(logprobs=(TokenLogprob(1, 0.0),)), first, Delta("more", (6,)), Delta(finish_reason="length")):
        push(delta)
    assert deltas == [Delta(logprobs=(TokenLogprob(1, 0.0),)), Delta(finish_reason="length")]
