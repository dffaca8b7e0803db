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


class RequestFailed(ServerFailed):
    """Failure of a server in one request, which does not mean that it is down."""


class ServerBusy(Exception):
    """Server that is full or shuts down, which the pool knows. Another one, or the same one later, may answer.

    :param retry_after: seconds after which the server may accept the request; None if it does not specify them.
    """

    def __init__(self, retry_after: float | None = None) -> None:
        super().__init__("busy")
        self.retry_after = retry_after


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
        raise_refusal(slot, read_error_event(event.body), "an error event", event.body, None)
    except RequestFailed:
        raise
    except ServerFailed as failure:
        slot.failed(str(failure))
        raise
    except FAILURES as error:
        raise report_failure(slot, error) from None  # the error's text has the server's address
    finally:
        if response is not None:
            await close_response(response, whole=whole)


async def _open(
    slot: UpstreamSlot, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> aiohttp.ClientResponse:
    """Return the response to a request, with status 200. Raise the errors of :func:`stream_chunks`."""
    response = await send(slot, path, headers, json=body)
    if response.status != 200:
        try:
            _, error = await read_error(response)
            raise_error_response(slot, response, error)
        finally:
            response.close()
    slot.heard(output=False)
    return response


async def send(slot: UpstreamSlot, path: str, headers: Mapping[str, str], **body: Any) -> aiohttp.ClientResponse:
    """Return the response to a POST request, of any status. If the server is found hung, it ends.

    :param body: the option ``json`` or ``data`` of :meth:`aiohttp.ClientSession.request`.

    Raise the errors of :data:`FAILURES`.
    """
    try:
        async with asyncio.timeout(None) as opening:
            slot.on_hung = lambda: opening.reschedule(0)
            response = await slot.server.session.request("POST", path, headers=headers, **body)
    finally:
        slot.on_hung = _do_nothing
    slot.on_hung = response.close
    return response


def _do_nothing() -> None:
    """Ignore that a server is hung after the request has failed."""


async def read_error(response: aiohttp.ClientResponse) -> tuple[bytes, Any]:
    """Return the body of a response with an error status, and its JSON; None instead if it is not JSON."""
    text = b""
    while len(text) < MAX_ERROR_BYTES and (data := await response.content.readany()):
        text += data
    with suppress(ValueError):
        return text, json.loads(text)
    return text, None


def refusal_of(status: int, body: Any) -> Refusal:
    """Return the meaning of a response with a status other than 200: redirects are not followed.

    :param body: decoded JSON of the response; None if it is not JSON.
    """
    return read_refusal(status, body) if status >= 400 else "configuration"


def raise_error_response(slot: UpstreamSlot, response: aiohttp.ClientResponse, body: Any) -> NoReturn:
    """Report a response with a status other than 200 to ``slot``, and raise its error, see :func:`raise_refusal`."""
    status = response.status
    raise_refusal(slot, refusal_of(status, body), f"HTTP {status}", body, response.headers.get("Retry-After"))


def raise_refusal(slot: UpstreamSlot, refusal: Refusal, reason: str, body: Any, retry_after: str | None) -> NoReturn:
    """Report a refusal to ``slot``, and raise its error. The server's texts are in the log only, never in the error.

    :param reason: the status, for the log.
    """
    if refusal == "down":
        slot.failed(f"it has sent {reason}.")
        raise ServerFailed(reason)
    if refusal == "error":
        slot.errored(f"it has sent {reason}.")
        raise RequestFailed(reason)
    if refusal == "broken_off":
        raise RequestFailed(reason)
    if refusal == "busy":
        seconds = _seconds(retry_after)
        slot.busy(seconds)
        raise ServerBusy(seconds)
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


def report_failure(slot: UpstreamSlot, error: Exception) -> ServerFailed:
    """Report one of :data:`FAILURES` to ``slot``, and return the error to raise.

    A server that is slow to accept a connection is not down while its other answers arrive: it, or this process, is
    busy.
    """
    reason = "it was silent." if slot.hung else _reason(error)
    if not (isinstance(error, aiohttp.ConnectionTimeoutError) and slot.server.is_sending):
        slot.failed(reason)
    return ServerFailed(reason)


def _reason(error: Exception) -> str:
    """Return the reason of a failure, for the log, without addresses."""
    if isinstance(error, OSError):
        return f"{os_error_reason(error) or type(error).__name__}."
    return "it has sent a broken event." if isinstance(error, ValueError) else "it has closed the connection."


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header; None for a missing one, or a date."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


async def close_response(response: aiohttp.ClientResponse, *, whole: bool) -> None:
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
            body = await server.session.read_json(response)
            count = body.get("count") if isinstance(body, dict) else None
            return count if isinstance(count, int) and count > 0 else None
    return None
