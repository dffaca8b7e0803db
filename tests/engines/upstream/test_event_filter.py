"""Tests for the filter of relayed event streams: whole events, the usage and the end, wherever reads divide them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiochatstream.engines.upstream.event_filter import RESPONSE_MARKS, EventFilter
from aiochatstream.engines.upstream.stream_chunks import MAX_EVENT_BYTES, ErrorEvent

USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


def event(body: Any, newline: str = "\n") -> bytes:
    text = body if isinstance(body, str) else json.dumps(body)
    return f"data: {text}{newline}{newline}".encode()


def chunk(reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def stream(newline: str = "\n") -> list[bytes]:
    bodies = [chunk(role="assistant", content=""), chunk(content="sea"), chunk(content='"error" [DONE]'), chunk("stop"),
              {"choices": [], "usage": USAGE}, "[DONE]"]  # fmt: skip
    return [event(body, newline) for body in bodies]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 5, 33, 10_000])
@pytest.mark.parametrize("drops_usage", [True, False])
def test_whole_events_pass_except_the_usage(newline: str, size: int, drops_usage: bool) -> None:
    events = stream(newline)
    data, passed = b"".join(events), []
    event_filter = EventFilter(drops_usage=drops_usage)
    for start in range(0, len(data), size):
        passed.append(event_filter.feed(data[start : start + size]))
        assert passed[-1] == b"" or passed[-1].endswith(b"\n\n") or passed[-1].endswith(b"\n\r\n")
    assert b"".join(passed) == b"".join(events[:4] + events[5 if drops_usage else 4 :])
    assert (event_filter.done, event_filter.finish_reason, event_filter.usage) == (True, "stop", USAGE)
    assert event_filter.error is None


def test_a_usage_beside_text_passes() -> None:
    event_filter = EventFilter(drops_usage=True)
    last = event(chunk("length", content="x") | {"usage": USAGE})
    assert event_filter.feed(last) == last
    assert event_filter.usage == USAGE


@pytest.mark.parametrize(
    "delta",
    [{"content": "a"}, {"reasoning": "a"}, {"reasoning_content": "a"}, {"tool_calls": [{"index": 0}]}],
)
def test_output_begins_with_text_thoughts_or_calls(delta: dict[str, Any]) -> None:
    event_filter = EventFilter(drops_usage=True)
    assert event_filter.feed(b": heartbeat\n\n") == b""
    event_filter.feed(event(chunk(role="assistant", content="")))
    assert not event_filter.has_output
    event_filter.feed(event(chunk(**delta)))
    assert event_filter.has_output


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"message": "x", "code": 500}}, ErrorEvent),
        ({"object": "error", "message": "x"}, ErrorEvent),
        (chunk("abort"), ValueError),
        ("[DONE]", ValueError),
        ('{"error": {', ValueError),
        ("[1]", None),
    ],
)
@pytest.mark.parametrize("separate", [True, False])
def test_an_error_ends_the_events_that_pass(body: Any, kind: type[Exception] | None, separate: bool) -> None:
    event_filter = EventFilter(drops_usage=True)
    text, last = event(chunk(content="sea")), event(body)
    passed = [event_filter.feed(data) for data in ([text, last] if separate else [text + last])]
    if kind is None and separate:
        assert b"".join(passed) == text + last  # not parsed
        return
    assert b"".join(passed) == text
    assert type(event_filter.error) in (kind or ValueError, json.JSONDecodeError)
    assert not event_filter.done


def test_an_event_that_is_too_large_is_refused() -> None:
    event_filter = EventFilter(drops_usage=True)
    with pytest.raises(ValueError, match="too large"):
        event_filter.feed(b"data: " + b"x" * MAX_EVENT_BYTES)


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_responses_end_with_their_last_event(kind: str) -> None:
    event_filter = EventFilter(drops_usage=False, marks=RESPONSE_MARKS)
    created = {"type": "response.created", "response": {"usage": None, "error": None}}
    assert event_filter.feed(event(created)) == event(created)
    assert not event_filter.has_output
    event_filter.feed(event({"type": "response.output_text.delta", "delta": "x"}))
    last = {"type": f"response.{kind}", "response": {"usage": USAGE, "error": {"message": "x"}}}
    assert event_filter.feed(event(last)) == event(last)
    assert (event_filter.has_output, event_filter.done, event_filter.usage) == (True, True, USAGE)
