"""Reading answers from bytes, without any I/O: one reader per protocol.

Bytes may come merged or split in any way. What counts are the protocol's own pieces (an event, a chunk of HTTP, a text
with its end token), never the reads.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from aiochatstream.sse import EventParser, json_object
from aiochatstream.terminal import one_line

END_TOKEN = b"<::EOS::>"
"""What ends each piece of chatstream's format."""


class BadAnswer(Exception):
    """The server answered, but the answer is broken, incomplete or an error. The message is one clause."""


class WrongProtocol(BadAnswer):
    """What came is not this protocol at all."""


class Refused(BadAnswer):
    """The server had no place for the request, and said so in the answer's body. The message is its error code."""


@dataclass(slots=True)
class Told:
    """What the server itself told of an answer. None: nothing."""

    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    queue_s: float | None = None


class AnswerReader(ABC):
    """Turns the body of one answer into its new texts."""

    media_type: str
    """The content type that a body of this protocol has."""

    def __init__(self) -> None:
        self.told = Told()

    @abstractmethod
    def feed(self, data: bytes, *, chunk_ends: bool) -> list[str]:
        """Take what arrived; return the texts that are complete by now, none of them empty.

        :param chunk_ends: an HTTP chunk ends with ``data`` (or the body has no chunks).

        Raises BadAnswer.
        """

    @abstractmethod
    def finish(self) -> None:
        """The body has ended well. Raises BadAnswer where the answer has not."""


class TextReader(AnswerReader):
    """Our text format: an HTTP chunk is a piece."""

    media_type = "text/plain"

    def __init__(self) -> None:
        super().__init__()
        self._pending = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def feed(self, data: bytes, *, chunk_ends: bool) -> list[str]:
        self._pending += data
        if not chunk_ends:
            return []
        text, self._pending = self._decode(self._pending), b""
        if END_TOKEN.decode() in text:
            raise WrongProtocol(f"the text has {END_TOKEN.decode()} in it, which is --protocol chatstream")
        return [text] if text else []

    def finish(self) -> None:
        self._decode(self._pending, final=True)

    def _decode(self, data: bytes, *, final: bool = False) -> str:
        try:
            return self._decoder.decode(data, final)
        except UnicodeDecodeError:
            raise BadAnswer("the text is not UTF-8") from None


class CumulativeReader(AnswerReader):
    """chatstream 0.3.0: each piece is the whole answer so far and an end token."""

    media_type = "text/plain"

    def __init__(self) -> None:
        super().__init__()
        self._pending = b""
        self._text: str | None = None

    def feed(self, data: bytes, *, chunk_ends: bool) -> list[str]:
        *pieces, self._pending = (self._pending + data).split(END_TOKEN)
        return [new for piece in pieces if (new := self._newer(piece))]

    def finish(self) -> None:
        if self._text is None and b"too_many_requests" in self._pending:
            raise Refused("too_many_requests")
        if self._text is None or self._pending.strip():
            beginning = self._pending[:80].decode(errors="replace")
            error = WrongProtocol if self._text is None else BadAnswer
            raise error(f"the text does not end with {END_TOKEN.decode()} but with {beginning!r}")

    def _newer(self, piece: bytes) -> str:
        known = self._text or ""
        self._text = piece.decode(errors="replace")
        return self._text[len(known) :]


class SseReader(AnswerReader):
    """Our events: queued, start, delta, done, error."""

    media_type = "text/event-stream"

    def __init__(self) -> None:
        super().__init__()
        self._events = EventParser()
        self._done = False

    def feed(self, data: bytes, *, chunk_ends: bool) -> list[str]:
        texts = []
        for name, raw in self._events.feed(data):
            event = _event_object(raw)
            if name == "delta":
                texts.append(str(event.get("text", "")))
            elif name == "done":
                self._done = True
                usage, timing = _part(event, "usage"), _part(event, "timing")
                self.told = Told(
                    _count(usage, "completion_tokens"),
                    _count(usage, "prompt_tokens"),
                    _count(usage, "cached_tokens"),
                    _seconds(timing, "queue_s"),
                )
            elif name == "error":
                code = str(_part(event, "error").get("error", "without a code"))
                raise Refused(code) if code == "too_many_requests" else BadAnswer(f"error event {code}")
            elif name not in ("queued", "start"):
                raise WrongProtocol(f"its events are not aiochatstream's ({name or 'they have no name'})")
        return [text for text in texts if text]

    def finish(self) -> None:
        if not self._done:
            raise BadAnswer("the events end without `done`")


class OpenAIReader(AnswerReader):
    """Chunks of OpenAI's chat completions."""

    media_type = "text/event-stream"

    def __init__(self) -> None:
        super().__init__()
        self._events = EventParser()
        self._done = False

    def feed(self, data: bytes, *, chunk_ends: bool) -> list[str]:
        texts = []
        for name, raw in self._events.feed(data):
            if raw == "[DONE]":
                self._done = True
                continue
            chunk = _event_object(raw)
            if name == "error" or "error" in chunk:
                raise BadAnswer(f"error in the stream: {one_line(raw)}")
            choices = chunk.get("choices")
            if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
                raise WrongProtocol("its events are not chat completion chunks")
            for choice in choices:
                delta = _part(choice, "delta")
                text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
                texts.append(str(text))
                self._done = self._done or choice.get("finish_reason") is not None
            self._note_usage(_part(chunk, "usage"))
        return [text for text in texts if text]

    def finish(self) -> None:
        if not self._done:
            raise BadAnswer("the stream ends without a finish_reason or [DONE]")

    def _note_usage(self, usage: dict[str, Any]) -> None:
        if usage:
            cached = _count(_part(usage, "prompt_tokens_details"), "cached_tokens")
            self.told = Told(_count(usage, "completion_tokens"), _count(usage, "prompt_tokens"), cached)


def _event_object(data: str) -> dict[str, Any]:
    """Return the JSON object of an event. Raise BadAnswer if it has none."""
    try:
        return json_object(data)
    except ValueError as error:
        raise BadAnswer(f"an event is {error}") from None


def _part(event: dict[str, Any], name: str) -> dict[str, Any]:
    """The object ``name`` of an event; an empty one where there is none."""
    part = event.get(name)
    return part if isinstance(part, dict) else {}


def _count(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) else None


def _seconds(timing: dict[str, Any], name: str) -> float | None:
    value = timing.get(name)
    return float(value) if isinstance(value, int | float) else None
