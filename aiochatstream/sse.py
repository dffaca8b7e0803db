"""Parser of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events), for clients."""

from __future__ import annotations

import json
from typing import Any


class EventParser:
    """Incremental parser of an event stream. Chunks of bytes may divide the stream anywhere."""

    def __init__(self) -> None:
        self._line = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[tuple[str, str]]:
        """Return name and data of the events that ``chunk`` completes. The name of an unnamed event is empty."""
        events = []
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            field, _, value = line.rstrip(b"\r").decode(errors="replace").partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                self._name = value
            elif field == "data":
                self._data.append(value)
            elif not line.strip():
                if self._data:
                    events.append((self._name, "\n".join(self._data)))
                self._name, self._data = "", []
        return events


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object that ``text`` represents. Raise ValueError for other text."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object: {text[:200]!r}")
    return value
