"""Incremental reading of a model's response: thoughts, content and tool calls, by a response template."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from aiochatstream.engines.base import ToolCall
from aiochatstream.engines.transformers.call_bodies import CallBody, CallEnd, call_body
from aiochatstream.engines.transformers.marked_text import MarkedText
from aiochatstream.engines.transformers.response_template import (
    KINDS,
    MAX_MARK_LENGTH,
    Field,
    Kind,
    ResponseTemplate,
    compile_response_template,
)

__all__ = [
    "ContentText",
    "Part",
    "Region",
    "ResponseReader",
    "ResponseTemplate",
    "Thought",
    "load_response_template",
]

Region = Literal["thinking", "content", "call", "other"]
"""Region of a response. ``other`` is outside of all fields, if the template marks where content begins (Harmony)."""

WHITESPACE = " \t\r\n"

CONTEXT = 64
"""Number of characters before a mark that its pattern can look at."""

MAX_INVALID_CALLS = 100
"""Maximum number of invalid calls in a response, after which calls are text: each may cost a scan of the response."""

OPEN_THINKING = ("<think>", "<think>\n", "[THINK]", "<|channel>thought\n", "<|channel|>analysis<|message|>")
"""Texts that may begin a thought."""

CLOSE_THINKING = (
    "\n</think>\n\n",
    "[/THINK]",
    "<channel|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
)
"""Texts that may end a thought and begin the content."""

DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class ContentText:
    """A piece of the response's content."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of a thought."""

    text: str


Part = ContentText | Thought | ToolCall
"""A piece of a response."""


def load_response_template(
    spec: dict[str, Any], control_tokens: Collection[str] = (), special_tokens: Collection[str] = ()
) -> ResponseTemplate:
    """Return the compiled form of a response template in transformers' format.

    :param control_tokens: texts of the vocabulary's added tokens.
    :param special_tokens: texts of the tokens that are not shown, unless a mark of the template contains them.

    Raise ValueError, with the name of the field, if the template is invalid.
    """
    template = compile_response_template(spec, control_tokens, special_tokens)
    for begin in (*OPEN_THINKING, *_thinking_marks(spec, "open")):
        if _read(template, begin, "a") == [Thought("a")]:
            ends = (
                end
                for end in (*CLOSE_THINKING, *_thinking_marks(spec, "close"))
                if _read(template, begin, "a", end, "b") == [Thought("a"), ContentText("b")]
            )
            return replace(template, open_thinking=begin, close_thinking=next(ends, None))
    return template


def _thinking_marks(spec: Mapping[str, Any], side: Literal["open", "close"]) -> Iterator[str]:
    """Yield the fixed texts that open or close thoughts."""
    for name, field in spec["fields"].items():
        if KINDS.get(name) == "thinking":
            marks = field.get(side) or ()
            yield from (marks,) if isinstance(marks, str) else marks


def _read(template: ResponseTemplate, *texts: str) -> list[Part]:
    """Return the parts of ``texts``, in which all that looks like a control token is one."""
    reader = ResponseReader(template)
    parts: list[Part] = []
    for text in texts:
        for piece, control in template.split(text):
            parts += reader.feed(piece, control=control)
    return parts


@dataclass(frozen=True)
class _MarkMatch:
    """A mark in the text: its place, its named groups, its field, and whether it opens the field."""

    start: int
    end: int
    groups: Mapping[str, str | None]
    field: Field
    opens: bool


class ResponseReader:
    """Reader of one response.

    Whitespace next to a mark belongs to the format; all other text is returned. What looks like a call and is not a
    valid call of ``tools`` is content, with its marks.

    :param prefix: text of the prompt with its control tokens. The generation prompt may begin a thought.
    :param tools: functions that the model may call, as in OpenAI's API. Without any, calls are content.
    """

    def __init__(self, template: ResponseTemplate, prefix: str = "", tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._template = template
        self._names = {tool.get("function", tool)["name"] for tool in tools}
        self._coerce = template.coercer(tools)
        self._source = MarkedText(template.token_pattern)
        self._at = 0
        """Index of the text that is not returned yet."""
        self._search_from = 0
        """Index from which the next mark is searched."""
        self._field = template.implicit
        self._call: CallBody | None = None
        self._invalid_calls = 0
        self._spaces: list[str] = []
        """Whitespace that belongs to the format if a mark follows."""
        self._lead: str | None = None
        """Text to return instead of the next whitespace, which follows a mark; None to return the whitespace."""
        self._returned_kinds: set[Kind] = set()
        """Kinds of which text was returned."""
        self._parts: list[Part] = []
        self._read_prefix(template.after_anchor(prefix) if prefix else "")

    @property
    def region(self) -> Region:
        """Region of the text that follows."""
        if self._call is not None:
            return "call"
        field = self._field
        if self._at < len(self._source.text):  # a mark that may still become longer
            mark, _ = self._next_mark(final=True)
            if mark is not None and mark.end == len(self._source.text):
                field = mark.field if mark.opens else self._template.implicit
        if field is not None:
            return field.kind
        return "other" if any(field.kind == "content" for field in self._template.fields) else "content"

    def feed(self, text: str, *, control: bool = False) -> list[Part]:
        """Read generated text; return the parts that are certain.

        The token that ends the response is not fed.

        :param control: ``text`` is a control token of the vocabulary. Other text never is one, even if it looks alike.
        """
        if control:
            if self._call is not None or text not in self._template.hidden:
                self._append(text, control=True)
        else:
            for start in range(0, len(text), MAX_MARK_LENGTH):
                self._append(text[start : start + MAX_MARK_LENGTH], control=False)
        return self._take_parts()

    def close(self, *, cut_off: bool) -> list[Part]:
        """End the response; return the remaining parts.

        :param cut_off: the model did not end the response itself: a call without its end is content.
        """
        if cut_off and self._call is not None and self._call.needs_end:
            self._end_call(self._call, self._call.invalid)
        while self._step(final=True):
            pass
        if self._spaces:
            self._return(self._take_spaces())
        return self._take_parts()

    def _read_prefix(self, prefix: str) -> None:
        """Enter the region in which the prompt ends."""
        for text, control in self._template.split(prefix):
            self.feed(text, control=control)
        self._at = self._search_from = len(self._source.text)
        self._call, self._spaces = None, []

    def _append(self, text: str, *, control: bool) -> None:
        self._source.append(text, control=control)
        while self._step(final=False):
            pass
        excess = self._at - CONTEXT
        if excess > 0 and self._call is None:
            self._source.trim(excess)
            self._at -= excess
            self._search_from -= excess

    def _take_parts(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    def _step(self, *, final: bool) -> bool:
        """Read up to the next mark, or the next end of a call; return False if more text is needed."""
        if self._call is not None:
            end = self._call.read(self._source, final=final)
            if end is not None:
                self._end_call(self._call, end)
            return end is not None
        mark, held_from = self._next_mark(final=final)
        if mark is None:
            self._write_until(held_from)
            return False
        self._write_until(mark.start)
        if mark.opens and mark.field.kind == "call":
            groups = {name: text for name, text in mark.groups.items() if text is not None}
            self._call = call_body(mark.field, groups, mark.start, mark.end)
            return True
        self._at = self._search_from = mark.end
        if mark.start == mark.end and (mark.opens or mark.field is self._template.implicit):
            self._search_from += 1  # at least one character before the next mark
        self._enter(mark.field if mark.opens else self._template.implicit)
        return True

    def _next_mark(self, *, final: bool) -> tuple[_MarkMatch | None, int]:
        """Return the next mark that counts in this region, or None; and the end of the text before it that is certainly
        not part of a mark."""
        length = held_from = len(self._source.text)
        first: _MarkMatch | None = None
        start = min(max(self._at, self._search_from), length)
        for field, opens in self._marks():
            mark = field.open if opens else field.close
            if mark is None:
                continue
            match, held = mark.find(self._source, start, final=final)
            held_from = min(held_from, held)
            if match is not None and not (opens and self._is_quoted(field, match.start())):
                candidate = _MarkMatch(match.start(), match.end(), match.groupdict(), field, opens)
                first = candidate if first is None else min(first, candidate, key=lambda mark: (mark.start, -mark.end))
        if first is not None and first.start >= held_from:
            first = None
        return first, held_from

    def _is_quoted(self, field: Field, at: int) -> bool:
        """Return True if the open mark at ``at`` is ordinary text that content quotes."""
        if field.kind != "thinking" or self._template.inline_thoughts:
            return False
        return "content" in self._returned_kinds or bool(self._source.text[self._at : at].strip(WHITESPACE))

    def _marks(self) -> Iterator[tuple[Field, bool]]:
        """Yield the fields whose marks count in this region, and whether it is the open mark."""
        if self._kind == "content" or self._field is self._template.implicit:
            for field in self._template.fields:
                if field.kind != "call" or (self._names and self._invalid_calls < MAX_INVALID_CALLS):
                    yield field, True
        if self._field is not None:
            yield self._field, False

    def _enter(self, field: Field | None) -> None:
        """Enter the region of ``field``, after a mark."""
        self._spaces, self._field, self._lead = [], field, None
        if self._strips:
            join = None if field is None else field.join
            self._lead = join if self._kind in self._returned_kinds else ""

    def _end_call(self, call: CallBody, end: CallEnd) -> None:
        """Return a call, or its text if it is invalid."""
        text = self._source.text[self._at : end.end]
        calls = None if end.body is None else self._parse_calls(call, end.body, text)
        self._at = self._search_from = end.end
        if not end.more:
            self._call = None
        if calls is None:
            self._invalid_calls += end.body is None
            self._write(text)
        else:
            self._enter(self._template.implicit)
            self._parts += calls

    def _parse_calls(self, call: CallBody, body: str, text: str) -> list[ToolCall] | None:
        """Return the calls in ``body``; None if it is not a valid call."""
        try:
            values = call.field.parse(body, call.groups)
            calls = [self._tool_call(value) for value in (values if isinstance(values, list) else [values])]
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
        return [replace(call, text="" if index else text) for index, call in enumerate(calls)]

    def _tool_call(self, value: Any) -> ToolCall:
        """Return the call in a message field of transformers. Raise an error if it is invalid."""
        name = value["function"]["name"]
        if name not in self._names:
            raise ValueError("unknown function")
        arguments = value["function"].get("arguments", value["function"].get("parameters"))
        if isinstance(arguments, str):
            arguments = DECODER.decode(arguments)
        if not isinstance(arguments, dict | None):
            raise ValueError("the arguments are not an object")
        arguments = self._coerce({"function": {"name": name, "arguments": arguments or {}}})["function"]["arguments"]
        arguments_text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        arguments_text.encode()  # raises UnicodeEncodeError, a ValueError, for unpaired surrogates
        return ToolCall(name, arguments_text, "")

    @property
    def _kind(self) -> Literal["thinking", "content"]:
        return "thinking" if self._field is not None and self._field.kind == "thinking" else "content"

    @property
    def _strips(self) -> bool:
        return self._field is None or self._field.strip

    def _write_until(self, end: int) -> None:
        text = self._source.text[self._at : end]
        self._at = end
        self._write(text)

    def _write(self, text: str) -> None:
        """Return ``text``, except for whitespace at its end, which may precede a mark."""
        visible = text.rstrip(WHITESPACE) if self._strips else text
        if visible:
            spaces = self._take_spaces()
            if self._lead is None:
                self._return(spaces + visible)
            else:
                self._return(self._lead + visible.lstrip(WHITESPACE))
                self._lead = None
        if len(visible) < len(text):
            self._spaces.append(text[len(visible) :])

    def _take_spaces(self) -> str:
        spaces = "".join(self._spaces)
        self._spaces.clear()
        return spaces

    def _return(self, text: str) -> None:
        kind = self._kind
        part = Thought if kind == "thinking" else ContentText
        self._returned_kinds.add(kind)
        if self._parts and isinstance(last := self._parts[-1], part):
            self._parts[-1] = part(last.text + text)
        else:
            self._parts.append(part(text))
