"""Tool calls: read by the engine, parsed from generated text, or forced by constraints."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiochatstream.constraint import JSON_OPTIONS, Constraint
from aiochatstream.engines import ToolCall
from aiochatstream.prompts.tools import BEGIN_CALL, END_CALL
from aiochatstream.web.openai.chat_request import FunctionDefinition

MISTRAL_TAG = "[TOOL_CALLS]"
"""Tag of Mistral's models before a list of calls."""

CALL_START = re.compile(
    rf'{BEGIN_CALL}|{re.escape(MISTRAL_TAG)}|(?<=\n)[ \t]{{0,40}}(?:\[\s{{0,40}})?\{{\s{{0,40}}"name"'
)
"""Possible beginning of calls: a tag, or a line that begins with a call's JSON. (Tags that are special tokens have no
text.)"""

PARTIAL_START = re.compile(r'(?<=\n)[ \t]{0,40}(?:\[\s{0,40})?(?:\{\s{0,40}(?:"(?:n(?:a(?:me?)?)?)?)?)?\Z')
"""Incomplete beginning of such a line, at the end of the text."""

BEFORE_FIRST_CALL = re.compile(rf"(?:\A|\n|{BEGIN_CALL}|{re.escape(MISTRAL_TAG)})[\s\[]*\Z")
"""End of the text before the first of several calls."""

LEADING_MARKUP = re.compile(rf"(?:{BEGIN_CALL}\s{{0,40}}|{re.escape(MISTRAL_TAG)}\s{{0,40}})?(?:\[\s{{0,40}})?\Z")
TRAILING_MARKUP = re.compile(rf"\A(?:\s{{0,40}}\]?\s{{0,40}}{END_CALL}|\s{{0,40}}\])")
SEPARATORS = re.compile(rf"(?:{re.escape(MISTRAL_TAG)}|{BEGIN_CALL}|{END_CALL}|[\s,;\[\]])*")
"""Separators between calls, which are not part of the text."""

LOOK_BEHIND = 64
"""Characters before an object that determine whether it may be a call."""

MAX_FAILURES = 100
"""Maximum number of invalid JSON objects in an answer, after which the rest is text: each one may cost a scan of the
whole answer."""

DECODER = json.JSONDecoder(strict=False)
"""Decoder that accepts unescaped line breaks and tabs in strings, which small models write."""

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
"""Schema of the arguments of a function without parameters."""

MAX_CALLS = 16
"""Maximum number of calls in an answer with ``tool_choice="required"``: small models do not stop by themselves."""


@dataclass(frozen=True, slots=True)
class CallPart:
    """A part of a call. name: name of the function, in the first part only."""

    index: int
    arguments: str
    name: str | None = None


Part = str | CallPart
"""A piece of text, or a part of a call."""


class OutputParser(ABC):
    """Incremental parser of the generated text of one answer."""

    finish_reason: Literal["tool_calls", "stop"] = "tool_calls"
    """Finish reason of a complete answer with calls."""

    @abstractmethod
    def feed(self, text: str) -> list[Part]:
        """Parse a piece of text; return the parts that are certain."""

    def add_call(self, call: ToolCall) -> list[Part]:
        """Add a call that the engine has read; return the parts that are certain. By default, it is text."""
        return self.feed(call.text)

    def close(self) -> list[Part]:
        """End the answer; return the remaining parts."""
        return []


class PlainTextParser(OutputParser):
    """Parser of answers without calls."""

    def feed(self, text: str) -> list[Part]:
        return [text] if text else []


class ToolCallParser(OutputParser):
    """Parser of text and calls in any order.

    Calls are JSON, in the tags that most models use, or at the beginning of the answer or of a line. A possible call
    and the text after it are held back until the answer ends.

    :param names: names of the functions.
    :param parallel: return all calls, not only the first one.
    :param text_may_be_call: False if the engine reads the calls: then text is never parsed.
    """

    def __init__(self, names: Collection[str], *, parallel: bool = True, text_may_be_call: bool = True) -> None:
        self._names, self._parallel, self._text_may_be_call = names, parallel, text_may_be_call
        self._calls_read = 0
        """Number of calls that the engine has read."""
        self._buffer = ""
        self._last = "\n"
        """Last returned character; at first a line break, as the answer begins a line."""
        self._holds: bool | None = None
        """True if all further text is held back; None until the answer begins."""

    def feed(self, text: str) -> list[Part]:
        if not self._text_may_be_call:
            return [text] if text else []
        self._buffer += text
        if self._holds is None and (begin := self._buffer.lstrip()[:1]):
            self._holds = begin in ("{", "[")
        if self._holds is not False:
            return []
        text = self._last + self._buffer
        if match := CALL_START.search(text, 1):
            self._holds, safe = True, match.start()
        else:
            partial = PARTIAL_START.search(text, 1)
            safe = min(
                _find_tag(text, BEGIN_CALL), _find_tag(text, MISTRAL_TAG), partial.start() if partial else len(text)
            )
        safe_text, self._buffer = text[1:safe], text[safe:]
        self._last = safe_text[-1:] or self._last
        return [safe_text] if safe_text else []

    def add_call(self, call: ToolCall) -> list[Part]:
        parts: list[Part] = [self._buffer] if self._buffer else []
        self._buffer, self._text_may_be_call = "", False  # the engine reads the calls
        if call.name not in self._names:
            return [*parts, call.text]
        self._calls_read += 1
        if self._parallel or self._calls_read == 1:
            parts.append(CallPart(self._calls_read - 1, call.arguments, call.name))
        return parts

    def close(self) -> list[Part]:
        parts = parse_calls(self._buffer, self._names)
        if self._parallel:
            return parts
        return [part for part in parts if isinstance(part, str) or part.index == 0]


class RequiredCallsParser(ToolCallParser):
    """Parser of answers that are constrained to calls. An answer that is cut off is text."""

    def feed(self, text: str) -> list[Part]:
        self._buffer += text
        return []

    def add_call(self, call: ToolCall) -> list[Part]:
        return self.feed(call.text)

    def close(self) -> list[Part]:
        try:
            json.loads(self._buffer)
        except (ValueError, RecursionError):
            return [self._buffer] if self._buffer else []
        return super().close()


class NamedCallParser(OutputParser):
    """Parser of answers that are constrained to the arguments of one function. As with OpenAI, they end with "stop"."""

    finish_reason = "stop"

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def feed(self, text: str) -> list[Part]:
        if not text:
            return []
        name, self._name = self._name, None
        return [CallPart(0, text, name)]


def parse_calls(text: str, names: Collection[str]) -> list[Part]:
    """Return the calls in ``text`` and the text between them, in order.

    A call is a JSON object with the name of a function and an object of arguments. The tags and separators around calls
    are omitted.
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
    """Yield the JSON objects that may be calls: start, end and value."""
    end = failures = 0
    at = text.find("{")
    while at >= 0 and failures < MAX_FAILURES:
        follows = end and at - end <= LOOK_BEHIND and SEPARATORS.fullmatch(text, end, at)
        if follows or BEFORE_FIRST_CALL.search(text, max(0, at - LOOK_BEHIND), at):
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
    """Return the call that a JSON object represents, or None."""
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    arguments = _arguments(value.get("arguments", value.get("parameters")))
    return None if arguments is None else CallPart(index, arguments, name)


def _text_between(text: str, *, after_call: bool, before_call: bool) -> list[Part]:
    """Return ``text`` without the tags and separators of the calls before and after it."""
    if (after_call and SEPARATORS.fullmatch(text)) or not text:
        return []
    if after_call:
        text = TRAILING_MARKUP.sub("", text, count=1)
    if before_call:
        lead = LEADING_MARKUP.search(text, max(0, len(text) - 2 * LOOK_BEHIND))
        text = text[: lead.start()] if lead else text
        if not text.strip():
            return []
    return [text] if text else []


def _arguments(value: Any) -> str | None:
    """Return the arguments of a call as JSON, or None if they are invalid."""
    try:
        arguments = DECODER.decode(value) if isinstance(value, str) else {} if value is None else value
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()  # raises UnicodeEncodeError, a ValueError, for unpaired surrogates
    except (ValueError, RecursionError):
        return None
    return text if isinstance(arguments, dict) else None


def named_call_constraint(function: FunctionDefinition) -> Constraint:
    """Return the constraint to the arguments of ``function``."""
    return Constraint.json_schema(_schema(function))


def required_calls_constraint(functions: Sequence[FunctionDefinition], *, parallel: bool) -> Constraint:
    """Return the constraint to a list of calls of ``functions``; of a single call unless ``parallel``.

    The JSON is spaced as in the models' training data.
    """
    more = f'(", " call){{0,{MAX_CALLS - 1}}}' if parallel else ""
    lines = [f'start: "[" call {more} "]"', "call: " + " | ".join(f"call_{at}" for at in range(len(functions)))]
    for at, function in enumerate(functions):
        begin = json.dumps(f'{{"name": "{function.name}", "arguments": ')
        schema = {**_schema(function), "x-guidance": JSON_OPTIONS}
        lines += [f'call_{at}: {begin} arguments_{at} "}}"', f"arguments_{at}: %json {json.dumps(schema)}"]
    return Constraint("lark", "\n".join(lines))


def _schema(function: FunctionDefinition) -> dict[str, Any]:
    return function.parameters or NO_ARGUMENTS


def _find_tag(text: str, tag: str) -> int:
    """Return the index of ``tag``, or of an incomplete tag at the end of ``text``; the text's length if absent."""
    at = text.find(tag)
    if at >= 0:
        return at
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return len(text) - length
    return len(text)
