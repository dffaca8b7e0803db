"""Parsers of answers, one for each protocol, without I/O.

Texts are counted by the units of the protocol (an event, an HTTP chunk, a text with its end token). How reads divide
the bytes makes no difference.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from aiochatstream.sse import EventParser, json_object
from aiochatstream.terminal import one_line

END_TOKEN = b"<::EOS::>"
"""Terminator of each text in chatstream's format."""


class InvalidAnswer(Exception):
    """Answer that is broken, incomplete or an error. The message is one clause."""


class ProtocolMismatch(InvalidAnswer):
    """Answer in another protocol."""


class RequestRefused(InvalidAnswer):
    """Refusal of a request by a server that is full. The message is the error code."""


@dataclass(slots=True)
class ServerStats:
    """Figures that the server reported about an answer; None if not reported."""

    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    queue_s: float | None = None


class ResponseParser(ABC):
    """Incremental parser of the body of one answer."""

    media_type: str
    """Content type of the protocol's answers."""

    def __init__(self) -> None:
        self.stats = ServerStats()

    @abstractmethod
    def feed(self, data: bytes, *, chunk_end: bool) -> list[str]:
        """Return the texts that ``data`` completes, without empty ones. Raise InvalidAnswer.

        :param chunk_end: an HTTP chunk ends with ``data``, or the body has no chunks.
        """

    @abstractmethod
    def finish(self) -> None:
        """Raise InvalidAnswer if the answer is not complete. Call this at the end of the body."""


class TextParser(ResponseParser):
    """Parser of aiochatstream's plain text, in which an HTTP chunk is a text."""

    media_type = "text/plain"

    def __init__(self) -> None:
        super().__init__()
        self._pending = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def feed(self, data: bytes, *, chunk_end: bool) -> list[str]:
        self._pending += data
        if not chunk_end:
            return []
        text, self._pending = self._decode(self._pending), b""
        if END_TOKEN.decode() in text:
            raise ProtocolMismatch(f"the text contains {END_TOKEN.decode()}, as with --protocol chatstream")
        return [text] if text else []

    def finish(self) -> None:
        self._decode(self._pending, final=True)

    def _decode(self, data: bytes, *, final: bool = False) -> str:
        try:
            return self._decoder.decode(data, final)
        except UnicodeDecodeError:
            raise InvalidAnswer("the text is not UTF-8") from None


class CumulativeTextParser(ResponseParser):
    """Parser of chatstream 0.3.0's text, which repeats the whole answer so far and an end token each time."""

    media_type = "text/plain"

    def __init__(self) -> None:
        super().__init__()
        self._pending = b""
        self._text: str | None = None

    def feed(self, data: bytes, *, chunk_end: bool) -> list[str]:
        *answers, self._pending = (self._pending + data).split(END_TOKEN)
        return [text for answer in answers if (text := self._new_text(answer))]

    def finish(self) -> None:
        if self._text is None and b"too_many_requests" in self._pending:
            raise RequestRefused("too_many_requests")
        if self._text is None or self._pending.strip():
            rest = self._pending[:80].decode(errors="replace")
            error = ProtocolMismatch if self._text is None else InvalidAnswer
            raise error(f"the text must end with {END_TOKEN.decode()}, not with {rest!r}")

    def _new_text(self, answer: bytes) -> str:
        known = self._text or ""
        self._text = answer.decode(errors="replace")
        return self._text[len(known) :]


class ChatEventParser(ResponseParser):
    """Parser of aiochatstream's events: queued, start, thinking, delta, done, error. Thoughts count as texts."""

    media_type = "text/event-stream"

    def __init__(self) -> None:
        super().__init__()
        self._events = EventParser()
        self._done = False

    def feed(self, data: bytes, *, chunk_end: bool) -> list[str]:
        texts = []
        for name, raw in self._events.feed(data):
            event = _event_object(raw)
            if name in ("delta", "thinking"):
                texts.append(str(event.get("text", "")))
            elif name == "done":
                self._done = True
                usage, timing = _part(event, "usage"), _part(event, "timing")
                self.stats = ServerStats(
                    _count(usage, "completion_tokens"),
                    _count(usage, "prompt_tokens"),
                    _count(usage, "cached_tokens"),
                    _seconds(timing, "queue_s"),
                )
            elif name == "error":
                code = str(_part(event, "error").get("error", "without a code"))
                raise RequestRefused(code) if code == "too_many_requests" else InvalidAnswer(f"error event {code}")
            elif name not in ("queued", "start"):
                raise ProtocolMismatch(f"unknown event {name!r}" if name else "events without names")
        return [text for text in texts if text]

    def finish(self) -> None:
        if not self._done:
            raise InvalidAnswer("the stream ends without a done event")


class OpenAIParser(ResponseParser):
    """Parser of OpenAI's chat completion chunks. Thoughts count as texts."""

    media_type = "text/event-stream"

    def __init__(self) -> None:
        super().__init__()
        self._events = EventParser()
        self._done = False

    def feed(self, data: bytes, *, chunk_end: bool) -> list[str]:
        texts = []
        for name, raw in self._events.feed(data):
            if raw == "[DONE]":
                self._done = True
                continue
            chunk = _event_object(raw)
            if name == "error" or "error" in chunk:
                raise InvalidAnswer(f"error in the stream: {one_line(raw)}")
            choices = chunk.get("choices")
            if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
                raise ProtocolMismatch("the events are not chat completion chunks")
            for choice in choices:
                delta = _part(choice, "delta")
                text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
                texts.append(str(text))
                self._done = self._done or choice.get("finish_reason") is not None
            self._record_usage(_part(chunk, "usage"))
        return [text for text in texts if text]

    def finish(self) -> None:
        if not self._done:
            raise InvalidAnswer("the stream ends without a finish_reason or [DONE]")

    def _record_usage(self, usage: dict[str, Any]) -> None:
        if usage:
            cached = _count(_part(usage, "prompt_tokens_details"), "cached_tokens")
            self.stats = ServerStats(_count(usage, "completion_tokens"), _count(usage, "prompt_tokens"), cached)


def _event_object(data: str) -> dict[str, Any]:
    """Return the JSON object of an event. Raise InvalidAnswer if there is none."""
    try:
        return json_object(data)
    except ValueError as error:
        raise InvalidAnswer(f"an event is {error}") from None


def _part(event: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the object ``name`` of an event, or an empty one."""
    part = event.get(name)
    return part if isinstance(part, dict) else {}


def _count(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) else None


def _seconds(timing: dict[str, Any], name: str) -> float | None:
    value = timing.get(name)
    return float(value) if isinstance(value, int | float) else None
