"""Event streams of servers on their way to a client, of which only few events are parsed.

This is the path of every relayed token: a read without any of the marks below costs a few searches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from aiochatstream.engines.upstream.stream_chunks import MAX_EVENT_BYTES, ErrorEvent

EVENT = re.compile(rb"(?s:.+?\n\r?\n)")

CHUNK_MARKS = (b'finish_reason":"', b'finish_reason": "', b'"error"', b"[DONE]")
"""Texts of which each chunk that matters contains one, except the first ones and those after a finish reason. In the
strings of an event, quotes are escaped, so that the text of an answer rarely has any."""

RESPONSE_MARKS = (b"response.completed", b"response.incomplete", b"response.failed", b'"error"')
"""Texts like :data:`CHUNK_MARKS` in the events of ``/v1/responses``."""

LAST_TYPES = ("response.completed", "response.incomplete", "response.failed")
"""Types of the last event of a stream of responses."""

BROKEN_REASONS = ("abort", "error")
"""Finish reasons of answers that have broken off."""


class EventFilter:
    """Passes whole events on, and notes the usage and the end of the answer.

    has_output: True after the first text, thought or call.
    done: True after the last event of a whole answer.
    usage: usage of the answer, in the words of the server; None if it is unknown so far.
    finish_reason: in the words of the server; empty if it is unknown so far.
    error: :class:`ErrorEvent` after an error of the server, ValueError after an event that is not JSON and after an
        answer that has broken off; else None.

    :param drops_usage: True removes the event whose only content is the usage.
    :param marks: :data:`CHUNK_MARKS` or :data:`RESPONSE_MARKS`.
    """

    def __init__(self, *, drops_usage: bool, marks: Sequence[bytes] = CHUNK_MARKS) -> None:
        self.has_output = self.done = False
        self.usage: dict[str, Any] | None = None
        self.finish_reason = ""
        self.error: ErrorEvent | ValueError | None = None
        self._drops_usage, self._marks = drops_usage, marks
        self._parses_all = True
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Add bytes; return the events that they complete, up to an error.

        Raise ValueError if an event is too large.
        """
        if self._rest:
            data = self._rest + data
        end = len(data) if data.endswith(b"\n\n") else _end_of_events(data)
        data, self._rest = data[:end], data[end:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError("an event is too large")
        if not self._parses_all:
            for mark in self._marks:  # any() would cost twice as much
                if mark in data:
                    break
            else:
                return data
        events = []
        try:
            for event in EVENT.findall(data):
                if self._passes(event):
                    events.append(event)
        except (ErrorEvent, ValueError) as error:
            self.error = error
        self._parses_all = not self.has_output or bool(self.finish_reason)
        return b"".join(events)

    def _passes(self, event: bytes) -> bool:
        """Read an event. Return True unless it must not reach the client."""
        payload = b"".join([line[5:] for line in event.splitlines() if line.startswith(b"data:")]).strip()
        if payload == b"[DONE]":
            if not self.finish_reason:
                raise ValueError("the answer has no finish reason")
            self.done = True
        if payload in (b"", b"[DONE]"):
            return bool(payload)  # else a comment
        body = json.loads(payload)
        if not isinstance(body, dict):
            raise ValueError("an event is not a JSON object")
        choices = body.get("choices")
        if not choices and (isinstance(body.get("error"), dict) or body.get("object") == "error"):
            raise ErrorEvent(body)
        response = body.get("response")
        usage = (response if isinstance(response, dict) else body).get("usage")
        if isinstance(usage, dict):
            self.usage = usage
        self._read_type(body)
        for choice in choices if isinstance(choices, list) else ():
            self._read_choice(choice)
        return not (self._drops_usage and isinstance(usage, dict) and choices == [])

    def _read_type(self, body: dict[str, Any]) -> None:
        """Read the type of an event of ``/v1/responses``."""
        kind = body.get("type")
        if isinstance(kind, str):
            self.has_output = self.has_output or kind.endswith(".delta")
            self.done = self.done or kind in LAST_TYPES

    def _read_choice(self, choice: Any) -> None:
        """Read a choice of a chunk of the other endpoints."""
        if not isinstance(choice, dict):
            raise ValueError("a choice is not a JSON object")
        delta = choice.get("delta")
        fields = delta if isinstance(delta, dict) else choice
        if any(fields.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls", "text")):
            self.has_output = True
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self.finish_reason = reason
            if reason in BROKEN_REASONS:
                raise ValueError("the answer has broken off")


def _end_of_events(data: bytes) -> int:
    """Return the position after the last empty line, which ends an event; 0 if there is none."""
    return max([data.rfind(mark) + len(mark) if mark in data else 0 for mark in (b"\n\n", b"\n\r\n")])
