"""Tool calls: found in what the model writes, or forced by the form that its answer is to have."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiochatstream.constraint import JSON_OPTIONS, Constraint
from aiochatstream.prompts.tools import BEGIN_CALL, END_CALL
from aiochatstream.web.openai.chat_request import Function

MISTRALS = "[TOOL_CALLS]"
"""What Mistral's models write before a list of calls."""

START = re.compile(rf'{BEGIN_CALL}|{re.escape(MISTRALS)}|(?<=\n)[ \t]{{0,40}}(?:\[\s{{0,40}})?\{{\s{{0,40}}"name"')
"""From here on, text may be calls: at a tag, or where a line begins as a call does. (Tags that are special tokens have
no text.)"""

PARTIAL = re.compile(r'(?<=\n)[ \t]{0,40}(?:\[\s{0,40})?(?:\{\s{0,40}(?:"(?:n(?:a(?:me?)?)?)?)?)?\Z')
"""The beginning of such a line."""

BEFORE = re.compile(rf"(?:\A|\n|{BEGIN_CALL}|{re.escape(MISTRALS)})[\s\[]*\Z")
"""The text before the first of several calls."""

LEAD = re.compile(rf"(?:{BEGIN_CALL}\s{{0,40}}|{re.escape(MISTRALS)}\s{{0,40}})?(?:\[\s{{0,40}})?\Z")
TRAIL = re.compile(rf"\A(?:\s{{0,40}}\]?\s{{0,40}}{END_CALL}|\s{{0,40}}\])")
GLUE = re.compile(rf"(?:{re.escape(MISTRALS)}|{BEGIN_CALL}|{END_CALL}|[\s,;\[\]])*")
"""Separators between calls, which are no text of their own."""

LOOK_BEHIND = 64
"""Characters before an object that decide whether it may be a call."""

MOST_FAILURES = 100
"""Objects that are no JSON, after which all is text: each may take as long as the answer is."""

DECODER = json.JSONDecoder(strict=False)
"""Small models write line ends and tabs into strings as they are."""

NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
"""The schema of a function without parameters."""

MOST_CALLS = 16
"""In an answer that must call: small models find no end."""


@dataclass(frozen=True, slots=True)
class CallPart:
    """A part of a call. name: of the function, with the first part only."""

    index: int
    arguments: str
    name: str | None = None


Part = str | CallPart
"""Text for the user, or a part of a call."""


class Reader(ABC):
    """Reads an answer as it is written."""

    finish_reason: Literal["tool_calls", "stop"] = "tool_calls"
    """The reason for the end of an answer with calls that ends by itself."""

    @abstractmethod
    def push(self, text: str) -> list[Part]:
        """What is certain with ``text``."""

    def end(self) -> list[Part]:
        """What the end of the answer makes certain."""
        return []


class PlainReader(Reader):
    """Everything is text."""

    def push(self, text: str) -> list[Part]:
        return [text] if text else []


class CallReader(Reader):
    """Text and calls, in any order: within the tags that most models learn, or as JSON at the beginning of the answer
    or of a line.

    What may be a call is held back until the answer ends; where it is none, it is text.

    :param names: the functions that there are.
    :param parallel: whether there may be several calls; else the first one counts.
    """

    def __init__(self, names: Collection[str], *, parallel: bool = True) -> None:
        self._names, self._parallel = names, parallel
        self._held = ""
        self._last = "\n"
        """The last character that was told; before the first one, as at the beginning of a line."""
        self._holds: bool | None = None
        """True if all further text is held; None until the answer has begun."""

    def push(self, text: str) -> list[Part]:
        self._held += text
        if self._holds is None and (begin := self._held.lstrip()[:1]):
            self._holds = begin in ("{", "[")
        if self._holds is not False:
            return []
        text = self._last + self._held
        if found := START.search(text, 1):
            self._holds, safe = True, found.start()
        else:
            partial = PARTIAL.search(text, 1)
            safe = min(_before(text, BEGIN_CALL), _before(text, MISTRALS), partial.start() if partial else len(text))
        told, self._held = text[1:safe], text[safe:]
        self._last = told[-1:] or self._last
        return [told] if told else []

    def end(self) -> list[Part]:
        parts = read_calls(self._held, self._names)
        if self._parallel:
            return parts
        return [part for part in parts if isinstance(part, str) or part.index == 0]


class WholeReader(CallReader):
    """Nothing but calls, which the answer's form makes certain unless it is cut off."""

    def push(self, text: str) -> list[Part]:
        self._held += text
        return []

    def end(self) -> list[Part]:
        try:
            json.loads(self._held)
        except (ValueError, RecursionError):
            return [self._held] if self._held else []
        return super().end()


class OneCallReader(Reader):
    """All of the answer is the arguments of this function. As with OpenAI, such an answer ends with "stop"."""

    finish_reason = "stop"

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def push(self, text: str) -> list[Part]:
        if not text:
            return []
        name, self._name = self._name, None
        return [CallPart(0, text, name)]


def read_calls(text: str, names: Collection[str]) -> list[Part]:
    """Return the calls in ``text``, and all other text, in order.

    A call is a JSON object with the name of a function that there is, and with an object of arguments; all else is
    text, but for tags and separators beside calls.
    """
    parts: list[Part] = []
    calls = done = 0
    for begin, end, value in _objects(text):
        call = _call(value, names, calls)
        if call is not None:
            parts += [*_text_between(text[done:begin], after_call=calls > 0, before_call=True), call]
            done = end
            calls += 1
    return [*parts, *_text_between(text[done:], after_call=calls > 0, before_call=False)]


def _objects(text: str) -> Iterator[tuple[int, int, Any]]:
    """Yield the JSON objects where calls may be: begin, end and value."""
    end = failures = 0
    at = text.find("{")
    while at >= 0 and failures < MOST_FAILURES:
        follows = end and at - end <= LOOK_BEHIND and GLUE.fullmatch(text, end, at)
        if follows or BEFORE.search(text, max(0, at - LOOK_BEHIND), at):
            try:
                value, end = DECODER.raw_decode(text, at)
            except (ValueError, RecursionError):
                failures += 1
            else:
                yield at, end, value
                at = text.find("{", end)
                continue
        at = text.find("{", at + 1)


def _call(value: Any, names: Collection[str], index: int) -> CallPart | None:
    """Return the call that a JSON object is, None if it is none."""
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    arguments = _arguments(value.get("arguments", value.get("parameters")))
    return None if arguments is None else CallPart(index, arguments, name)


def _text_between(text: str, *, after_call: bool, before_call: bool) -> list[Part]:
    """Return ``text`` without the tags and separators of the calls before and after it."""
    if (after_call and GLUE.fullmatch(text)) or not text:
        return []
    if after_call:
        text = TRAIL.sub("", text, count=1)
    if before_call:
        lead = LEAD.search(text, max(0, len(text) - 2 * LOOK_BEHIND))
        text = text[: lead.start()] if lead else text
        if not text.strip():
            return []
    return [text] if text else []


def _arguments(written: Any) -> str | None:
    """What a function is called with, as JSON; None where it is nothing to call one with."""
    try:
        arguments = DECODER.decode(written) if isinstance(written, str) else {} if written is None else written
        told = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        told.encode()  # which half a surrogate pair cannot be
    except (ValueError, RecursionError):
        return None
    return told if isinstance(arguments, dict) else None


def one_call(function: Function) -> Constraint:
    """The arguments of ``function``."""
    return Constraint.json_schema(_schema(function))


def some_calls(functions: Sequence[Function], *, parallel: bool) -> Constraint:
    """A list of one call or more of ``functions``; exactly one, unless ``parallel``.

    It is spaced as in the examples that models learn from.
    """
    more = f'(", " call){{0,{MOST_CALLS - 1}}}' if parallel else ""
    lines = [f'start: "[" call {more} "]"', "call: " + " | ".join(f"call_{at}" for at in range(len(functions)))]
    for at, function in enumerate(functions):
        begin = json.dumps(f'{{"name": "{function.name}", "arguments": ')
        schema = {**_schema(function), "x-guidance": JSON_OPTIONS}
        lines += [f'call_{at}: {begin} arguments_{at} "}}"', f"arguments_{at}: %json {json.dumps(schema)}"]
    return Constraint("lark", "\n".join(lines))


def _schema(function: Function) -> dict[str, Any]:
    return function.parameters or NOTHING


def _before(text: str, tag: str) -> int:
    """How much of ``text`` comes before ``tag``, or before what may become it."""
    at = text.find(tag)
    if at >= 0:
        return at
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return len(text) - length
    return len(text)
