"""Incremental scanning of the JSON objects of tool calls, and of the dialects in which models write them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import regex

from aiochatstream.engines.transformers.marked_text import MarkedText

SPACE = regex.compile(r"[ \t\r\n]*")
STRING_STOP = regex.compile(r'["\\\x00-\x1f]')
ESCAPE = regex.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
WORD = regex.compile(r"[-+.\w]*")
SCALAR = regex.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
NAME = regex.compile(r"\w+")

MAX_WORD = 400
"""Maximum length of a number or of a key without quotes."""

MAX_DEPTH = 100
"""Maximum number of objects and lists within each other."""

CLOSING = {"{": "}", "[": "]"}


class InvalidJSON(ValueError):
    """The text is not the beginning of a JSON object."""


class ObjectScanner:
    """Scanner of one JSON object. Each character is read once, however the text is cut.

    Line breaks and tabs in strings are accepted, because small models do not escape them.

    :param start: index of the object in the text.
    :param delimiters: marks before and after strings, besides quotation marks. Such strings have no escapes.
    :param bare_keys: accept keys without quotation marks.
    """

    def __init__(self, start: int = 0, delimiters: Sequence[tuple[str, str]] = (), *, bare_keys: bool = False) -> None:
        self._at = start
        self._delimiters, self._bare_keys = delimiters, bare_keys
        self._stack: list[str] = []
        self._expected = "value"
        """Next element: value, key, colon or comma; or the end, instead of item, first key and comma."""
        self._string_end = ""
        """Mark that ends the current string; empty outside of strings."""
        self._pieces: list[str] = []

    @property
    def json(self) -> str:
        """The scanned object as standard JSON."""
        return "".join(self._pieces)

    def scan(self, source: MarkedText) -> int | None:
        """Continue; return the index after the object, or None if it is incomplete.

        Raise InvalidJSON if no further text can complete it.
        """
        while True:
            if self._string_end:
                complete = self._scan_string(source)
            else:
                self._at = SPACE.match(source.text, self._at).end()
                complete = self._at < len(source.text) and self._scan_element(source)
            if not complete:
                return None
            if not self._stack:
                return self._at

    def _scan_element(self, source: MarkedText) -> bool:
        """Read an element, or the beginning of a string; return False if it is incomplete."""
        char = source.text[self._at]
        if char in CLOSING:
            self._require("value", "item")
            if len(self._stack) == MAX_DEPTH or (not self._stack and char == "["):
                raise InvalidJSON
            self._stack.append(CLOSING[char])
            self._accept(char, "first key" if char == "{" else "item")
        elif char in ("}", "]"):
            self._require("comma", "first key" if char == "}" else "item")
            if self._stack.pop() != char:
                raise InvalidJSON
            self._accept(char, "comma")
        elif char == ",":
            self._require("comma")
            self._accept(char, "key" if self._stack[-1] == "}" else "value")
        elif char == ":":
            self._require("colon")
            self._accept(char, "value")
        else:
            return self._scan_word(source)
        return True

    def _require(self, *expected: str) -> None:
        if self._expected not in expected:
            raise InvalidJSON

    def _accept(self, text: str, expected: str) -> None:
        self._pieces.append(text)
        self._at += len(text)
        self._expected = expected

    def _scan_word(self, source: MarkedText) -> bool:
        """Read a number, a literal or a key without quotation marks, or the beginning of a string."""
        self._require("value", "item", "key", "first key")
        if not self._stack:
            raise InvalidJSON
        for begin, end in (*self._delimiters, ('"', '"')):
            if source.has(begin, self._at):
                self._at += len(begin)
                self._string_end = end
                self._pieces.append('"')
                return True
            if begin.startswith(source.text[self._at :]):
                return False
        word = WORD.match(source.text, self._at, self._at + MAX_WORD).group()
        is_key = "key" in self._expected
        if is_key and not self._bare_keys:
            raise InvalidJSON
        if self._at + len(word) == len(source.text):
            if not (NAME if is_key else SCALAR).fullmatch(word, partial=True):
                raise InvalidJSON
            return False
        if not (NAME if is_key else SCALAR).fullmatch(word):
            raise InvalidJSON
        self._at += len(word)
        self._pieces.append(f'"{word}"' if is_key else word)
        self._expected = "colon" if is_key else "comma"
        return True

    def _scan_string(self, source: MarkedText) -> bool:
        """Read the rest of a string; return False if it is incomplete."""
        complete = self._scan_quoted(source) if self._string_end == '"' else self._scan_delimited(source)
        if complete:
            self._string_end = ""
            self._pieces.append('"')
            self._expected = "colon" if "key" in self._expected else "comma"
        return complete

    def _scan_quoted(self, source: MarkedText) -> bool:
        text = source.text
        while stop := STRING_STOP.search(text, self._at):
            self._pieces.append(text[self._at : stop.start()])
            self._at = stop.start()
            if stop.group() == '"':
                self._at += 1
                return True
            if stop.group() == "\\":
                escape = ESCAPE.match(text, self._at, partial=True)
                if escape is None:
                    raise InvalidJSON
                if escape.partial:
                    return False
                self._pieces.append(escape.group())
                self._at = escape.end()
            else:
                self._pieces.append(_escaped(stop.group()))
                self._at += 1
        self._pieces.append(text[self._at :])
        self._at = len(text)
        return False

    def _scan_delimited(self, source: MarkedText) -> bool:
        end, undecided = source.find(self._string_end, self._at)
        self._pieces.append(_escaped(source.text[self._at : undecided]))
        self._at = undecided if end is None else end
        return end is not None


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
