"""JSON objects of which a few members change, while the rest of the text stays as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_SPACE = re.compile(r"[ \t\n\r]*")

_DECODER = json.JSONDecoder(parse_int=float)  # Python's own integers refuse more than 4,300 digits


class _Member(NamedTuple):
    name: str
    start: int
    end: int


class JsonObject:
    """A JSON object as text, for example the body of a request.

    members: values by name. All numbers are floats.

    :param text: a JSON object.

    Raise ValueError for other texts.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._spans: list[_Member] = []
        self.members: dict[str, Any] = {}
        self._begin = self._skip("{", 0)
        position = _next(text, self._begin)
        if text[position : position + 1] == "}":
            return
        while True:
            name, position = _DECODER.raw_decode(text, position)
            if not isinstance(name, str):
                raise ValueError(f"no name before character {position}")
            start = _next(text, self._skip(":", position))
            self.members[name], end = _DECODER.raw_decode(text, start)
            self._spans.append(_Member(name, start, end))
            position = _next(text, end)
            if text[position : position + 1] == "}":
                return
            position = _next(text, self._skip(",", position))

    def with_members(self, values: Mapping[str, Any]) -> bytes:
        """Return the object as UTF-8, with other values of some members. New members are the first ones."""
        pieces, position = [self._text[: self._begin]], self._begin
        added = {name: value for name, value in values.items() if name not in self.members}
        if added:
            pieces += [_dumps(added)[1:-1], "," if self._spans else ""]
        for name, start, end in self._spans:
            if name in values:
                pieces += [self._text[position:start], _dumps(values[name])]
                position = end
        pieces.append(self._text[position:])
        return "".join(pieces).encode()

    def _skip(self, mark: str, position: int) -> int:
        """Return the position after ``mark``, which follows at ``position`` or after spaces."""
        position = _next(self._text, position)
        if not self._text.startswith(mark, position):
            raise ValueError(f"no {mark} at character {position}")
        return position + len(mark)


def _next(text: str, position: int) -> int:
    """Return the position after spaces."""
    match = _SPACE.match(text, position)
    return position if match is None else match.end()


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
