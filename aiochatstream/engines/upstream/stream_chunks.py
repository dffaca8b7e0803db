"""Parsing of the event streams of servers with OpenAI's API. This is the path of every token, so it is kept short."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

MAX_EVENT_BYTES = 1 << 24
"""Maximum size of an event; the ids of a long prompt are the largest part."""


class StreamUsage(NamedTuple):
    """Token counts at the end of a stream."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class StreamChunk(NamedTuple):
    """Content of one event.

    finish_reason: in the words of the server; empty if the answer goes on.
    prompt_tokens: number of the prompt's token ids, if the event has them; else 0.
    """

    text: str = ""
    thinking: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    prompt_tokens: int = 0
    usage: StreamUsage | None = None

    @property
    def has_output(self) -> bool:
        """True if the model has generated something that a user sees."""
        return bool(self.text or self.thinking)


class ErrorEvent(Exception):
    """Error that a server reports in a stream.

    :param body: decoded JSON of the event.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__("error event")
        self.body = body


class ChunkParser:
    """Splits the bytes of an event stream into events, wherever the reads divide them.

    done: True after ``[DONE]``; later events are ignored.
    error: an :class:`ErrorEvent` of the server, or a ValueError for an event that is not a chunk; None without either.
        What follows is ignored.
    """

    def __init__(self) -> None:
        self.done = False
        self.error: ErrorEvent | ValueError | None = None
        self._rest = b""

    def feed(self, data: bytes) -> list[StreamChunk]:
        """Add bytes; return the chunks that they complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        chunks: list[StreamChunk] = []
        try:
            if len(self._rest) > MAX_EVENT_BYTES:
                raise ValueError("an event is too large")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue  # an empty line, a comment (heartbeat) or the name of an event
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    self.done = True
                    break
                if payload:
                    chunks.append(_chunk(json.loads(payload.decode())))
        except (ErrorEvent, ValueError) as error:
            self.error = error
        return chunks


def _chunk(event: Any) -> StreamChunk:
    """Return the chunk of an event, of ``/v1/chat/completions`` or ``/v1/completions``."""
    if not isinstance(event, dict):
        raise ValueError("an event is not a JSON object")
    choices = event.get("choices")
    if not choices:
        if "error" in event or event.get("object") == "error":
            raise ErrorEvent(event)
        return StreamChunk(usage=_usage(event.get("usage")))
    try:
        return _first_choice(event, choices[0])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("an event is not a chunk") from error


def _first_choice(event: dict[str, Any], choice: dict[str, Any]) -> StreamChunk:
    delta = choice.get("delta")
    if delta is None:
        text, thinking = choice.get("text") or "", ""
    else:
        text = delta.get("content") or ""
        thinking = delta.get("reasoning_content") or delta.get("reasoning") or ""
    if not isinstance(text, str) or not isinstance(thinking, str):
        raise TypeError("text")
    prompt_ids = event.get("prompt_token_ids") or choice.get("prompt_token_ids") or ()
    return StreamChunk(
        text,
        thinking,
        tuple(choice.get("token_ids") or ()),
        choice.get("finish_reason") or "",
        len(prompt_ids),
        _usage(event.get("usage")) if event.get("usage") else None,
    )


def _usage(usage: Any) -> StreamUsage | None:
    """Return the token counts; None without valid ones."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens"), cached or 0]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return None
    return StreamUsage._make(counts)
