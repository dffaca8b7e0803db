"""Tests for the parser of event streams."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiochatstream.engines.upstream.stream_chunks import ChunkParser, ErrorEvent, StreamChunk, StreamUsage

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
EVENTS: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "prompt_token_ids": [1, 2, 3]},
    {"choices": [{"index": 0, "delta": {"reasoning_content": "山", "reasoning": "山"}, "token_ids": [7]}]},
    {"choices": [{"index": 0, "delta": {"content": "👩‍🚀 é"}, "token_ids": [8, 9]}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": USAGE},
]
CHUNKS = [
    StreamChunk(prompt_tokens=3),
    StreamChunk(thinking="山", token_ids=(7,)),
    StreamChunk("👩‍🚀 é", token_ids=(8, 9)),
    StreamChunk(finish_reason="stop"),
    StreamChunk(usage=StreamUsage(5, 2, 4)),
]


def stream(*events: Any, end: str = "\n\n") -> bytes:
    lines = [": keep-alive", "event: message", *(f"data: {json.dumps(event, ensure_ascii=False)}" for event in events)]
    return end.join([*lines, "data: [DONE]", ""]).encode()


@given(st.lists(st.integers(0, 700)), st.sampled_from(["\n\n", "\r\n\r\n", "\n"]))
def test_the_division_into_reads_does_not_matter(cuts: list[int], end: str) -> None:
    data, parser, chunks = stream(*EVENTS, end=end), ChunkParser(), []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        assert not parser.done or start >= len(data) - len(end)
        chunks += parser.feed(data[start:stop])
    assert chunks == CHUNKS
    assert parser.done


def test_completions_have_text_and_the_ids_of_the_prompt_in_the_choice() -> None:
    event = {"choices": [{"text": "a", "token_ids": [1], "prompt_token_ids": [5, 6], "finish_reason": None}]}
    assert ChunkParser().feed(stream(event)) == [StreamChunk("a", token_ids=(1,), prompt_tokens=2)]


def test_nothing_follows_the_end() -> None:
    parser = ChunkParser()
    assert parser.feed(stream(EVENTS[2]) + stream(EVENTS[2])) == [CHUNKS[2]]


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": 1}, {"prompt_tokens": -1, "completion_tokens": 2}, [], "x"])
def test_usage_without_valid_counts_is_no_usage(usage: Any) -> None:
    assert ChunkParser().feed(stream({"choices": [], "usage": usage})) == [StreamChunk()]


@pytest.mark.parametrize("body", [{"error": {"code": 500}}, {"object": "error", "message": "x"}])
def test_an_error_event_ends_the_stream(body: dict[str, Any]) -> None:
    parser = ChunkParser()
    assert parser.feed(stream(EVENTS[2], body, EVENTS[3])) == [CHUNKS[2]]
    assert isinstance(parser.error, ErrorEvent)
    assert parser.error.body == body
    assert not parser.done


@pytest.mark.parametrize(
    "line",
    [
        b'data: {"choices": [{"delta": {"cont\n',
        b"data: [1]\n",
        b'data: {"choices": [3]}\n',
        b'data: {"choices": [{"delta": {"content": 3}}]}\n',
        b'data: {"choices": [{"delta": "text"}]}\n',
        b'data: {"choices": {"a": 1}}\n',
        b'data: "\xff"\n',
        b"data: " + b"x" * (1 << 24),
    ],
)
def test_what_is_no_event_is_a_value_error(line: bytes) -> None:
    parser = ChunkParser()
    assert parser.feed(line) == []
    assert isinstance(parser.error, ValueError)
