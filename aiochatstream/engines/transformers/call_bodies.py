"""Incremental readers of the bodies of tool calls: JSON objects, tagged arguments, other text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import regex

from aiochatstream.engines.transformers.json_scanner import InvalidJSON, ObjectScanner
from aiochatstream.engines.transformers.marked_text import MarkedText
from aiochatstream.engines.transformers.response_template import MAX_MARK_LENGTH, Field, Mark

LIST_END = regex.compile(r"(?:\s*\])?")

MAX_FAILURES = 100
"""Maximum number of close marks within a call that do not end it: each may cost a scan of the whole call."""

MIN_RESCAN = 256
"""Length from which an incomplete argument is scanned again only when it has doubled."""


@dataclass(frozen=True)
class CallEnd:
    """The end of a call, or of the text that is not part of a call.

    end: index after its text.
    body: the call without its marks; None if the text is not a call.
    more: further calls may follow before the close mark.
    """

    end: int
    body: str | None = None
    more: bool = False


class CallBody(ABC):
    """Reader of the text between the open and the close mark of a field with calls.

    :param field: the field.
    :param groups: groups of the open mark.
    :param start: index of the open mark.
    :param body: index after the open mark.
    """

    needs_end = True
    """A call is incomplete until its close mark, or the end of a response that was not cut off."""

    def __init__(self, field: Field, groups: Mapping[str, str], start: int, body: int) -> None:
        self.field, self.groups = field, groups
        self._body = body
        self.invalid = CallEnd(max(body, start + 1))
        """The end of the text that is not part of a call, if the call is invalid."""

    @abstractmethod
    def read(self, source: MarkedText, *, final: bool) -> CallEnd | None:
        """Return the end of the next call, or None if it needs more text.

        :param final: the text is complete.
        """


def call_body(field: Field, groups: Mapping[str, str], start: int, body: int) -> CallBody:
    """Return the reader of a call's body."""
    if field.argument is not None:
        return TagsBody(field, groups, start, body, field.argument)
    return (ObjectsBody if field.is_json else TextBody)(field, groups, start, body)


class ObjectsBody(CallBody):
    """Reader of JSON objects, each of which is a call.

    Lists of objects, several objects without a list, and a missing close mark are accepted.
    """

    needs_end = False

    def __init__(self, field: Field, groups: Mapping[str, str], start: int, body: int) -> None:
        super().__init__(field, groups, start, body)
        self._at = body
        self._scanner: ObjectScanner | None = None
        self._object: tuple[int, str] | None = None
        """The index after the current object, and its JSON."""

    def read(self, source: MarkedText, *, final: bool) -> CallEnd | None:
        try:
            self._object = self._object or self._scan(source)
        except InvalidJSON:
            return self.invalid
        if self._object is None:
            return self.invalid if final else None
        end, body = self._object
        following = self.field.separators.match(source.text, end).end()
        if following - end > MAX_MARK_LENGTH:
            return CallEnd(end, body)
        if self.field.close_object is not None:
            close, may_change = self.field.close_object.match(source, end, final=final)
            if may_change:
                return None
            if close is not None:
                return CallEnd(close.end(), body)
        if following == len(source.text):
            return CallEnd(following, body) if final else None
        if source.text[following] == "{" and not self.field.names_call:
            self._at, self._scanner, self._object = following, None, None
            self.invalid = CallEnd(following + 1)
            return CallEnd(end, body, more=True)
        return CallEnd(end if self.field.names_call else LIST_END.match(source.text, end).end(), body)

    def _scan(self, source: MarkedText) -> tuple[int, str] | None:
        """Return the current object, or None if it is incomplete."""
        if self._scanner is None:
            self._at = self.field.separators.match(source.text, self._at).end()
            if self._at - self._body > MAX_MARK_LENGTH:
                raise InvalidJSON
            if self._at == len(source.text):
                return None
            self._scanner = ObjectScanner(self._at, self.field.delimiters, bare_keys=self.field.bare_keys)
        end = self._scanner.scan(source)
        return None if end is None else (end, self._scanner.json)


class TagsBody(CallBody):
    """Reader of a call whose arguments are in tags, with nothing between them."""

    def __init__(self, field: Field, groups: Mapping[str, str], start: int, body: int, argument: Mark) -> None:
        super().__init__(field, groups, start, body)
        self._argument = argument
        self._at = self._unsearched = body
        self._rescan_length = 0
        self._failures = 0

    def read(self, source: MarkedText, *, final: bool) -> CallEnd | None:
        may_be_complete = final or len(source.text) >= self._rescan_length
        if self.field.close is not None:
            close, undecided = self.field.close.find(source, self._unsearched, final=final)
            may_be_complete = may_be_complete or close is not None
            self._unsearched = undecided if close is None else close.start() + 1
            self._failures += close is not None
        if not may_be_complete:
            return None
        if self._failures > MAX_FAILURES:
            return self.invalid
        return self._scan(source, final=final)

    def _scan(self, source: MarkedText, *, final: bool) -> CallEnd | None:
        while True:
            close, close_may_change = (None, False)
            if self.field.close_object is not None:
                close, close_may_change = self.field.close_object.match(source, self._at, final=final)
            if close is not None and not close_may_change:
                return CallEnd(close.end(), source.text[self._body : close.start()])
            argument, argument_may_change = self._argument.match(source, self._at, final=final)
            if argument is None or argument_may_change:
                break
            self._at = argument.end()
        if not (close_may_change or argument_may_change):
            return self.invalid
        length = len(source.text) - self._at
        self._rescan_length = self._at + 2 * length if length >= MIN_RESCAN else 0
        return None


class TextBody(CallBody):
    """Reader of a call of any other form, which ends at the first close mark."""

    def __init__(self, field: Field, groups: Mapping[str, str], start: int, body: int) -> None:
        super().__init__(field, groups, start, body)
        self._unsearched = body

    def read(self, source: MarkedText, *, final: bool) -> CallEnd | None:
        if self.field.close is None:
            return CallEnd(len(source.text), source.text[self._body :]) if final else None
        close, self._unsearched = self.field.close.find(source, self._unsearched, final=final)
        if close is not None:
            return CallEnd(close.end(), source.text[self._body : close.start()])
        return self.invalid if final else None
