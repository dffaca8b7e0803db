"""One request to an upstream: its stream, and the meaning of each failure for the server and for the client."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from aiochatstream.engines.base import FinishReason
from aiochatstream.engines.upstream.dialects import Refusal, read_error_event, read_refusal
from aiochatstream.engines.upstream.server import UpstreamServer, UpstreamSlot
from aiochatstream.engines.upstream.stream_chunks import ChunkParser, ErrorEvent, StreamChunk
from aiochatstream.errors import BadRequest, ContextLengthExceeded, EngineFailed, LoopDetected
from aiochatstream.terminal import os_error_reason

logger = logging.getLogger(__name__)

FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "stop",
    "function_call": "stop",
    "content_filter": "stop",
}
"""Finish reasons of whole answers. With any other, for example vLLM's ``abort``, an answer has broken off."""

END_SECONDS = 0.1
"""Seconds to wait for the end of the response after its last event, so that the connection can be used again."""

COUNT_SECONDS = 2.0
"""Maximum time for a server to count the tokens of a prompt."""

MAX_ERROR_BYTES = 1 << 16
"""Bytes of an error response that are read."""

FAILURES = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)  # TimeoutError is an OSError
"""Errors that mean that the server has failed: of connections, and of streams that are no events."""


class ServerFailed(Exception):
    """Failure of a server, which the pool knows. Another server may answer."""


class ServerBusy(Exception):
    """Server that is full or shuts down, which the pool knows. Another one, or the same one later, may answer."""


async def stream_chunks(
    slot: UpstreamSlot, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> AsyncGenerator[list[StreamChunk], None]:
    """Send a request and yield the chunks of its answer, as they arrive: those of one read together.

    The generator ends only after a whole answer: with a finish reason of :data:`FINISH_REASONS` and ``[DONE]``. Closing
    or cancelling it closes the connection, also while the server is silent.

    Raise :class:`ServerFailed` and :class:`ServerBusy` after they have been reported to ``slot``, and the errors of
    requests that no other server would accept: :class:`~aiochatstream.errors.ContextLengthExceeded`,
    :class:`~aiochatstream.errors.LoopDetected`, :class:`~aiochatstream.errors.EngineFailed` for a configuration that an
    operator must correct, and :class:`~aiochatstream.errors.BadRequest`. None contains text of the server.
    """
    response: aiohttp.ClientResponse | None = None
    whole = False
    try:
        response = await _open(slot, path, body, headers)
        parser, finish_reason = ChunkParser(), ""
        content = response.content
        while not parser.done:
            data = await content.readany()
            if not data:
                raise ServerFailed("its stream ended without [DONE].")
            chunks = parser.feed(data)
            has_output = False
            for chunk in chunks:
                has_output = has_output or chunk.has_output
                finish_reason = chunk.finish_reason or finish_reason
            slot.heard(output=has_output)
            if chunks:
                yield chunks
            if parser.error is not None:
                raise parser.error
        if finish_reason not in FINISH_REASONS:
            raise ServerFailed(f"its answer ended with finish reason {finish_reason[:40]!r}.")
        whole = True
    except ErrorEvent as event:
        _raise_refusal(slot, read_error_event(event.body), "an error event", event.body, None)
    except ServerFailed as failure:
        slot.failed(str(failure))
        raise
    except FAILURES as error:
        reason = "it was silent." if slot.hung else _reason(error)
        slot.failed(reason)
        raise ServerFailed(reason) from None  # the error's text has the server's address
    finally:
        if response is not None:
            await _close(response, whole=whole)


async def _open(
    slot: UpstreamSlot, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> aiohttp.ClientResponse:
    """Return the response to a request, with status 200. Raise the errors of :func:`stream_chunks`."""
    try:
        async with asyncio.timeout(None) as opening:
            slot.on_hung = lambda: opening.reschedule(0)
            response = await slot.server.session.request("POST", path, json=body, headers=headers)
    finally:
        slot.on_hung = _do_nothing
    slot.on_hung = response.close
    if response.status != 200:
        try:
            await _refuse(slot, response)
        finally:
            response.close()
    slot.heard(output=False)
    return response


def _do_nothing() -> None:
    """Ignore that a server is hung after the request has failed."""


async def _refuse(slot: UpstreamSlot, response: aiohttp.ClientResponse) -> NoReturn:
    """Raise the error of a response with an error status."""
    text = b""
    while len(text) < MAX_ERROR_BYTES and (data := await response.content.readany()):
        text += data
    error: Any = None
    with suppress(ValueError):
        error = json.loads(text)
    refusal = read_refusal(response.status, error) if response.status >= 400 else "configuration"
    _raise_refusal(slot, refusal, f"HTTP {response.status}", error, response.headers.get("Retry-After"))


def _raise_refusal(slot: UpstreamSlot, refusal: Refusal, reason: str, body: Any, retry_after: str | None) -> NoReturn:
    """Report a refusal to ``slot``, and raise its error. The server's texts are in the log only, never in the error.

    :param reason: the status, for the log.
    """
    if refusal == "down":
        slot.failed(f"it has sent {reason}.")
        raise ServerFailed(reason)
    if refusal == "busy":
        slot.busy(_seconds(retry_after))
        raise ServerBusy
    if refusal == "draining":
        slot.draining()
        raise ServerBusy
    if refusal == "loop":
        raise LoopDetected("This request has passed too many servers, or the same one twice.")
    if refusal == "too_long":
        raise ContextLengthExceeded("The prompt is too long for the model's context.")
    if refusal == "configuration":
        slot.misconfigured(f"it refuses requests with {reason}.")
        raise EngineFailed("The model's server refused this server's request; see the server's log.")
    logger.warning("Upstream server %s refused a request: %s, %.500s", slot.server.name, reason, json.dumps(body))
    raise BadRequest("The model's server does not accept this request; see the server's log.")


def _reason(error: Exception) -> str:
    """Return the reason of a failure, for the log, without addresses."""
    if isinstance(error, OSError):
        return f"{os_error_reason(error) or type(error).__name__}."
    return "it has sent a broken event." if isinstance(error, ValueError) else "it has closed the connection."


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header; None for a missing one, or a date."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


async def _close(response: aiohttp.ClientResponse, *, whole: bool) -> None:
    """Close the connection of a response; keep it for another request if nothing but the end follows."""
    if whole:
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                if not await response.content.readany():
                    response.release()
                    return
    response.close()


async def count_tokens(server: UpstreamServer, messages: Sequence[Mapping[str, str]]) -> int | None:
    """Return the number of tokens of messages by the server's own count; None if it does not answer in time."""
    body = {"model": server.model, "messages": messages}
    with suppress(*FAILURES):
        async with (
            asyncio.timeout(COUNT_SECONDS),
            server.session.request("POST", "/tokenize", json=body, raise_for_status=True) as response,
        ):
            count = (await response.json(content_type=None)).get("count")
            return count if isinstance(count, int) and count > 0 else None
    return None
