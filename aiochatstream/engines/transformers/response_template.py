"""Compiled response templates, and everything that uses the internals of transformers' chat parsing."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import regex
from transformers.utils.chat_parsing.content_parsers import process_field
from transformers.utils.chat_parsing.response_parser import ResponseParser
from transformers.utils.chat_parsing.response_templates import load_response_template

from aiochatstream.engines.transformers.marked_text import MarkedText

Kind = Literal["thinking", "content", "call"]

KINDS: dict[str, Kind] = {
    "thinking": "thinking",
    "reasoning": "thinking",
    "reasoning_content": "thinking",
    "content": "content",
    "tool_calls": "call",
}
"""Kinds of fields, by name. The text of all other fields is content."""

MAX_MARK_LENGTH = 256
"""Maximum length of a mark."""

LAZY = regex.compile(r"(?<!\\)(?:[*+?}]\?)")
SEPARATORS = r"[\s,;\[\]]*"
"""Text between the objects of several calls."""


class Mark:
    """The text that opens or closes a field.

    :param max_length: maximum length; longer text is not held back for the mark.
    """

    def __init__(self, pattern: str, max_length: float = MAX_MARK_LENGTH) -> None:
        self._max_length = max_length
        self._pattern = regex.compile(pattern, regex.DOTALL)
        # (?!) never matches, so that only beginnings of matches are found, also of those that are longer than a match.
        # A lazy pattern always allows longer matches, but means the shortest.
        self._unfinished = None if LAZY.search(pattern) else regex.compile(f"(?:{pattern})(?!)", regex.DOTALL)

    def find(self, source: MarkedText, start: int, *, final: bool) -> tuple[Any, int]:
        """Return the first match that more text cannot change, or None; and the end of the text before it that is
        certainly not part of a mark."""
        length = len(source.text)
        match = source.search(self._pattern, start)
        if final:
            return match, length
        held_from = length
        if self._unfinished is not None or match is None:
            late = max(start, length - MAX_MARK_LENGTH)
            unfinished = source.search(self._unfinished or self._pattern, late, partial=True)
            if unfinished is not None and unfinished.partial:
                held_from = unfinished.start()
        if match is not None and (match.start() >= held_from or match.start() == match.end() == length):
            match = None
        return match, held_from

    def match(self, source: MarkedText, start: int, *, final: bool) -> tuple[Any, bool]:
        """Return the match at ``start`` or None, and whether more text can change this."""
        match = source.match(self._pattern, start)
        if final or (match is not None and self._unfinished is None):
            return match, False
        if len(source.text) - start > self._max_length:
            return match, False
        unfinished = source.match(self._unfinished or self._pattern, start, partial=True)
        return match, unfinished is not None and unfinished.partial


@dataclass(frozen=True)
class Field:
    """A part of a response: a thought, content or a call.

    open: mark before it; None for content that needs none.
    close: mark after it; None if it ends with the response, or at another field's mark.
    strip: whitespace next to the marks belongs to the format.
    join: text between two thoughts, or two pieces of content; None keeps the model's whitespace.
    parse: function that returns transformers' message fields for a call's body and the groups of its open mark.
    is_json: the body of a call consists of JSON objects, whose dialect ``delimiters`` and ``bare_keys`` describe.
    names_call: the open mark contains the call's name, so that the body is one object of arguments.
    separators: compiled pattern of the text before, between and after the objects of a call.
    close_object: close mark with the whitespace or separators before it.
    argument: mark of one argument of a call in tags; None for other calls.
    """

    kind: Kind
    open: Mark | None
    close: Mark | None
    strip: bool
    join: str | None
    parse: Callable[[str, Mapping[str, str]], Any]
    is_json: bool
    delimiters: Sequence[tuple[str, str]]
    bare_keys: bool
    names_call: bool
    separators: Any
    close_object: Mark | None
    argument: Mark | None


@dataclass(frozen=True)
class ResponseTemplate:
    """A compiled response template. One serves all responses of a model.

    fields: its fields that have an open mark.
    implicit: content that needs no open mark; None if content has one, as in Harmony.
    token_pattern: compiled pattern of the control tokens in marks, or None.
    hidden: control tokens that are not shown, except in the arguments of calls.
    inline_thoughts: a thought may follow content. False if its mark is ordinary text, which content may quote.
    open_thinking: text that begins a thought; None if the template has no thoughts or no fixed text begins them.
    close_thinking: text that ends a thought and begins the content; None if no known text does.
    """

    fields: tuple[Field, ...]
    implicit: Field | None
    token_pattern: Any
    hidden: frozenset[str]
    inline_thoughts: bool
    library_template: Any
    open_thinking: str | None = None
    close_thinking: str | None = None

    def after_anchor(self, prefix: str) -> str:
        """Return the part of ``prefix`` that belongs to the response; empty if its start cannot be found."""
        if self.library_template.start_anchor_re.search(prefix) is None:
            return ""
        return str(self.library_template.truncate_past_last_anchor(prefix))

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield the pieces of ``text``, and whether each is a control token of a mark."""
        end = 0
        for match in self.token_pattern.finditer(text) if self.token_pattern is not None else ():
            yield text[end : match.start()], False
            yield match.group(), True
            end = match.end()
        yield text[end:], False

    def coercer(self, tools: Sequence[Mapping[str, Any]]) -> Callable[[Any], Any]:
        """Return a function that converts the arguments of parsed calls to the types in ``tools``."""
        parser = ResponseParser(self.library_template, prefix="", tools=list(tools))
        coerce: Callable[[Any], Any] = parser._coerce_tool_calls
        return coerce


def compile_response_template(
    spec: dict[str, Any], control_tokens: Collection[str] = (), special_tokens: Collection[str] = ()
) -> ResponseTemplate:
    """Return the compiled form of ``spec``, without the texts that open and close thoughts.

    Raise ValueError, with the name of the field, if the template is invalid.
    """
    template = load_response_template(spec)
    marks = "\n".join(_marks(spec)).replace("\\", "")
    tokens = sorted((token for token in control_tokens if _is_tag(token) and token in marks), key=len, reverse=True)
    fields = [_compile_field(template.fields[name], KINDS[name]) for name in template.fields if name in KINDS]
    return ResponseTemplate(
        fields=tuple(field for field in fields if field.open is not None),
        implicit=next((field for field in fields if field.open is None), None),
        token_pattern=regex.compile("|".join(map(regex.escape, tokens))) if tokens else None,
        hidden=frozenset(special_tokens) - set(tokens),
        inline_thoughts=any(token in mark for mark in _thought_marks(spec) for token in tokens),
        library_template=template,
    )


def _is_tag(token: str) -> bool:
    """Return False for added tokens that are words, whitespace or single characters."""
    return len(token) > 1 and any(not character.isalnum() and not character.isspace() for character in token)


def _thought_marks(spec: dict[str, Any]) -> Iterator[str]:
    """Yield the open marks of thoughts."""
    for name, field in spec["fields"].items():
        if KINDS.get(name) == "thinking":
            yield from (mark.replace("\\", "") for key in ("open", "open_pattern") for mark in _marks(field.get(key)))


def _marks(spec: Any) -> Iterator[str]:
    """Yield all strings of a template."""
    if isinstance(spec, str):
        yield spec
    elif isinstance(spec, Mapping):
        for key, value in spec.items():
            if key not in ("start_anchor", "start_anchor_pattern"):
                yield from _marks(value)
    elif isinstance(spec, list | tuple):
        for value in spec:
            yield from _marks(value)


def _compile_field(field: Any, kind: Kind) -> Field:
    open_pattern, close_pattern = (None if mark is None else mark.pattern for mark in (field.open_re, field.close_re))
    arguments = field.content_args
    if not isinstance(arguments, dict):
        raise ValueError(f"Field '{field.name}': content_args must be a dict, not {type(arguments).__name__}")
    if kind == "call" and open_pattern is None:
        raise ValueError(f"Field '{field.name}': calls must have 'open' or 'open_pattern'")
    is_json = kind == "call" and field.content == "json"
    names_call = field.open_re is not None and "name" in field.open_re.groupindex
    argument = arguments.get("tag_pattern") if kind == "call" and field.content == "xml-inline" else None
    separators = SEPARATORS if is_json and not names_call else r"\s*"
    return Field(
        kind=kind,
        open=None if open_pattern is None else Mark(open_pattern),
        close=None if close_pattern is None else Mark(close_pattern),
        strip=bool(arguments.get("strip", True)),
        join=field.join,
        # the scanner returns standard JSON
        parse=_parser(replace(field, content_args={}) if is_json else field),
        is_json=is_json,
        delimiters=[(begin, end) for begin, end in arguments.get("string_delims", [])],
        bare_keys=bool(arguments.get("unquoted_keys", False)),
        names_call=names_call,
        separators=regex.compile(separators),
        close_object=None if close_pattern is None else Mark(rf"{separators}(?:{close_pattern})"),
        argument=None if argument is None else Mark(rf"\s*(?:{argument})", max_length=math.inf),
    )


def _parser(field: Any) -> Callable[[str, Mapping[str, str]], Any]:
    def parse(body: str, groups: Mapping[str, str]) -> Any:
        if field.content == "json" and field.transform_each:
            body = f"[{body}]"
        return process_field(body, field, dict(groups))

    return parse
