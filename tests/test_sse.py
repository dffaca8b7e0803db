"""Parsing event streams."""

from __future__ import annotations

import pytest

from aiochatstream.sse import EventParser, json_object

STREAM = ': heartbeat\n\nevent: start\ndata: {}\n\nid: 7\ndata:東京\ndata: é: a \n\nevent: empty\n\ndata: {"b": 1}\n\n'
EVENTS = [("start", "{}"), ("", "東京\né: a "), ("", '{"b": 1}')]
"""Without the event that has no data. A name applies to one event."""


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100_000])
def test_events_do_not_depend_on_the_division_into_chunks(line_end: str, size: int) -> None:
    stream, parser = STREAM.replace("\n", line_end).encode(), EventParser()
    chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert [event for chunk in chunks for event in parser.feed(chunk)] == EVENTS


def test_an_event_without_its_blank_line_is_not_complete() -> None:
    parser = EventParser()
    assert parser.feed(b"data: 1\n") == []
    assert parser.feed(b"\n") == [("", "1")]


def test_invalid_utf_8_is_replaced() -> None:
    assert EventParser().feed(b"data: \xff\n\n") == [("", "\ufffd")]


def test_a_json_object_is_returned() -> None:
    assert json_object('{"a": [1, null]}') == {"a": [1, None]}


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"a"', "{" * 10_000 + "\n"])
def test_other_json_and_other_text_are_an_error_of_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a JSON object: ") as raised:
        json_object(text)
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)
