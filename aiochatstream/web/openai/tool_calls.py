"""Tool calls: found in what the model writes, or forced by the form that its answer is to have."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiochatstream.constraint import JSON_OPTIONS, Constraint
from aiochatstream.prompts.tools import BEGIN_CALL
from aiochatstream.web.openai.chat_request import Function

CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)

MISTRALS = "[TOOL_CALLS]"
"""What Mistral's models write before a list of calls."""

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
    """Text, calls, or text and then calls: within the tags that most models learn, or as nothing but JSON.

    What may be a call is held back until the answer ends; where it is none, it is text.

    :param names: the functions that there are.
    :param parallel: whether there may be several calls; else the first one counts.
    """

    def __init__(self, names: Collection[str], *, parallel: bool = True) -> None:
        self._names, self._parallel = names, parallel
        self._held = ""
        self._is_json: bool | None = None
        """Whether it begins as JSON does; None until it has begun."""

    def push(self, text: str) -> list[Part]:
        self._held += text
        if self._is_json is None and (begin := self._held.lstrip()[:1]):
            self._is_json = begin in ("{", "[")
        if self._is_json is not False:
            return []
        safe = _before(self._held, BEGIN_CALL)
        told, self._held = self._held[:safe], self._held[safe:]
        return [told] if told else []

    def end(self) -> list[Part]:
        found = find_calls(self._held, self._names)
        if found is None:
            return [self._held] if self._held else []
        return list(found if self._parallel else found[:1])


class WholeReader(CallReader):
    """Nothing but calls, which the answer's form makes certain unless it is cut off."""

    def push(self, text: str) -> list[Part]:
        self._held += text
        return []


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


def find_calls(text: str, names: Collection[str]) -> list[CallPart] | None:
    """The calls that ``text`` is; None where it is (also) something else, or calls what there is not.

    Their arguments are JSON objects; what has others is no call.
    """
    if BEGIN_CALL in text:
        written = CALL.findall(text)
        if CALL.sub("", text).strip():
            return None
    else:
        written = [text.strip().removeprefix(MISTRALS)]
    calls: list[Any] = []
    for one in written:
        try:
            value = json.loads(one)
        except (ValueError, RecursionError):
            return None
        calls += value if isinstance(value, list) else [value]
    found = []
    for index, call in enumerate(calls):
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(name, str) or name not in names:
            return None
        arguments = _arguments(call.get("arguments", call.get("parameters")))
        if arguments is None:
            return None
        found.append(CallPart(index, arguments, name))
    return found or None


def _arguments(written: Any) -> str | None:
    """What a function is called with, as JSON; None where it is nothing to call one with."""
    try:
        arguments = json.loads(written) if isinstance(written, str) else {} if written is None else written
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
