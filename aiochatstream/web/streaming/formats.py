"""How an answer is written down for the client: plain text, server-sent events, one JSON object, or as chatstream did.

Each format is a function of an :class:`TurnResponse` that consumes the turn's events and returns the response.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from aiohttp import HttpVersion11, web

from aiochatstream.conversations.user import SaveResult
from aiochatstream.errors import BadRequest
from aiochatstream.params import WireFormat
from aiochatstream.runtime.events import Ended, Event, Failed, Heartbeat, Queued, Started, Text
from aiochatstream.runtime.turns import RunningTurn
from aiochatstream.sessions import UserSession
from aiochatstream.web.accept import parse_qualities
from aiochatstream.web.errors import error_body
from aiochatstream.web.json import dumps, json_response
from aiochatstream.web.streaming.streamed_response import HEARTBEAT, HEARTBEAT_SECONDS, STREAM_HEADERS, StreamedResponse

AF_UNIX = getattr(socket, "AF_UNIX", None)

MEDIA_TYPES: dict[str, WireFormat] = {
    "text/plain": "text",
    "text/*": "text",
    "text/event-stream": "sse",
    "application/json": "json",
}

MESSAGE_ID_HEADER = "X-ChatStream-Last-Generated-Message-Id"
DEV_TOOL_HEADER = "X-ChatStream-API-DevTool-Enabled"

WIRE_HEADER = "X-ChatStream-Wire"

WIRE_FORMATS: dict[str, WireFormat] = {"cumulative-eos": "chatstream", "cumulative": "chatstream-older"}
"""What the header may say. Both formats are text/plain, so ``Accept`` cannot tell them apart."""

END_TOKEN = "<::EOS::>"  # noqa: S105 - no password
UNLIKE_END_TOKEN = "<::EOS:: >"  # noqa: S105


def wire_format_of(request: web.Request, default: WireFormat) -> WireFormat:
    """The format that the request's headers choose; ``default`` where they do not.

    Raises :class:`~aiochatstream.errors.BadRequest` for a wire header that says something unknown.
    """
    asked = request.headers.getall(WIRE_HEADER, None)
    if asked is None:
        return choose_format(request.headers.getall("Accept", []), default)
    try:
        return WIRE_FORMATS[", ".join(asked)]
    except KeyError:
        raise BadRequest(f"{WIRE_HEADER}: must be {' or '.join(map(repr, WIRE_FORMATS))}, or absent.") from None


def choose_format(accept: Sequence[str], default: WireFormat) -> WireFormat:
    """The format that the client's ``Accept`` headers prefer; ``default`` where they name none of ours."""
    best, best_quality = default, 0.0
    for media_type, quality in parse_qualities(accept).items():
        chosen = default if media_type == "*/*" else MEDIA_TYPES.get(media_type)
        if chosen is not None and quality > best_quality:
            best, best_quality = chosen, quality
    return best


class TurnResponse(StreamedResponse):
    """One request, its user, and the turn that answers it.

    :param write_timeout: seconds that the client may take nothing.
    :param dev_tool: the client's role has the developer's tool.
    """

    def __init__(
        self,
        request: web.Request,
        user: UserSession,
        conversation: str,
        turn: RunningTurn,
        write_timeout: float,
        dev_tool: bool = False,
    ) -> None:
        super().__init__(request, write_timeout)
        self.user, self.conversation, self.turn, self.dev_tool = user, conversation, turn, dev_tool
        self.held = ExitStack()
        """What is given back when the exchange is over."""

    @property
    def headers(self) -> dict[str, str]:
        """Those of every format."""
        return {
            **STREAM_HEADERS,
            MESSAGE_ID_HEADER: self.turn.message_id,
            **({DEV_TOOL_HEADER: "enabled"} if self.dev_tool else {}),
        }

    async def put_in_session(self) -> None:
        """The session's part, just before a response begins."""
        if not self.turn.discarded:
            answered = self.turn.ended.is_set()
            await self.user.put_in_session(self.conversation, self.turn.conversation, answered=answered)

    async def on_prepare(self, response: web.StreamResponse) -> None:
        """The session's cookie goes with them."""
        await self.put_in_session()
        await self.user.save_with_stream(response)
        self.held.enter_context(self.user.pinned())  # a new session has its identity only now

    @contextmanager
    def unbuffered(self) -> Iterator[None]:
        """In this block, :meth:`taken` waits while the transport holds anything back, not only while it holds much."""
        transport = self.request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("The client left before the headers.")
        transport.set_write_buffer_limits(high=1, low=0)
        try:
            yield
        finally:
            if not transport.is_closing():  # the connection may serve more requests
                transport.set_write_buffer_limits()

    async def taken(self) -> None:
        """Wait until what was written is on its way. Raises TimeoutError as :meth:`write`."""
        transport = self.request.transport
        if transport is not None and transport.get_write_buffer_size():
            async with asyncio.timeout(self.write_timeout):
                await self.request.writer.drain()


async def write_text(exchange: TurnResponse) -> web.StreamResponse:
    """Each chunk is the new text only. The headers go out with the first one, so a failure before it has a status."""
    if hides_cuts(exchange.request):
        return await _write_whole(exchange, lambda text: text)
    return await _write_plain(exchange, lambda text: exchange.write("text/plain", text))


def hides_cuts(request: web.Request) -> bool:
    """Return whether the end of the connection is the end of a body, and no reset tells the client of a cut.

    So it is in HTTP/1.0 over a unix socket. A stream of events has an end of its own.
    """
    connection = request.get_extra_info("socket")
    return request.version < HttpVersion11 and connection is not None and connection.family == AF_UNIX


async def _write_whole(exchange: TurnResponse, chunk: Callable[[str], str]) -> web.StreamResponse:
    """All at once with its length, when it is whole."""
    await _end_of(exchange)
    return web.Response(text=chunk(exchange.turn.text), headers=exchange.headers)


async def _end_of(exchange: TurnResponse) -> Ended:
    """Wait for the end of the turn, and do the session's part. Raises the error of a turn that failed."""
    while True:
        event = await exchange.turn.next_event()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Ended):
            await exchange.put_in_session()
            return event


async def _write_plain(exchange: TurnResponse, write: Callable[[str], Awaitable[None]]) -> web.StreamResponse:
    """From the first text to the end; ``write`` is given each new text."""
    while True:
        event = await exchange.turn.next_event()
        if isinstance(event, Text):
            await write(event.text)
        elif isinstance(event, Ended):
            return await exchange.finish("text/plain")
        elif isinstance(event, Failed):
            if exchange.response is None:
                raise event.error
            exchange.abort()
            return exchange.response


async def write_cumulative_eos(exchange: TurnResponse) -> web.StreamResponse:
    """As chatstream: each chunk is the whole answer so far and the end token.

    Where the answer itself says the token, a space goes before its ``>``: the client would take it for the end of a
    chunk and lose what comes before it. So each chunk still begins with the one before; the history has the true text.
    """
    return await _write_cumulative(exchange, lambda text: text.replace(END_TOKEN, UNLIKE_END_TOKEN) + END_TOKEN)


async def write_cumulative(exchange: TurnResponse) -> web.StreamResponse:
    """As older versions of chatstream: each chunk is the whole answer so far, for clients that take a read for one."""
    return await _write_cumulative(exchange, lambda text: text)


async def _write_cumulative(exchange: TurnResponse, chunk: Callable[[str], str]) -> web.StreamResponse:
    """A chunk holds all that came before it, so one is enough for all text that gathered while the last one was being
    taken: the bytes grow with the square of the answer's length only for a client that keeps up.
    """
    if hides_cuts(exchange.request):
        return await _write_whole(exchange, chunk)
    heard = told = 0

    async def write(text: str) -> None:
        nonlocal heard, told
        heard += len(text)
        if heard <= told:
            return
        await exchange.open("text/plain")  # may wait for the session's storage: more gathers meanwhile
        whole = exchange.turn.text  # what the events that wait behind this one will tell is in it
        await exchange.write("text/plain", chunk(whole))
        told = len(whole)
        await exchange.taken()

    with exchange.unbuffered():
        return await _write_plain(exchange, write)


async def write_sse(exchange: TurnResponse) -> web.StreamResponse:
    """An event for everything that happens. The headers go out at once, so that queue positions can be shown."""
    await exchange.open("text/event-stream")
    with exchange.turn.heartbeats(HEARTBEAT_SECONDS):
        while True:
            event = await exchange.turn.next_event()
            await exchange.write("text/event-stream", sse_event(exchange.turn, event))
            if isinstance(event, Ended | Failed):
                return await exchange.finish("text/event-stream")


def sse_event(turn: RunningTurn, event: Event) -> str:
    """``event`` on the wire."""
    name: str
    data: dict[str, Any]
    match event:
        case Text(text):  # most of them by far
            return f'event: delta\ndata: {{"text":{dumps(text)}}}\n\n'
        case Heartbeat():
            return HEARTBEAT
        case Queued(position):
            name, data = "queued", {"position": position}
        case Started():
            name, data = "start", {"message_id": turn.message_id}
        case Ended():
            name, data = "done", {"message_id": turn.message_id, **summary(event), **_commit(event.kept)}
        case Failed(error):
            name, data = "error", {"error": error_body(error), **_commit(event.kept)}
    return f"event: {name}\ndata: {dumps(data)}\n\n"


async def write_json(exchange: TurnResponse) -> web.StreamResponse:
    """One object, when all is over."""
    ended = await _end_of(exchange)
    body = {"text": exchange.turn.text, "message_id": exchange.turn.message_id, **summary(ended)}
    return json_response(body, headers=exchange.headers)


def summary(ended: Ended) -> dict[str, Any]:
    """What there is to tell of an answer besides its text."""
    told = {} if ended.kept is None else save_summary(ended.kept)
    return {
        "finish_reason": ended.finish_reason,
        "usage": ended.usage._asdict(),
        "timing": ended.timing._asdict(),
        **told,
    }


def save_summary(kept: SaveResult) -> dict[str, Any]:
    """What a client is told of a conversation that was kept."""
    told: dict[str, Any] = {"turn": kept.conversation.number}
    if kept.dropped_turns:
        told["dropped_turns"] = kept.dropped_turns
    if not kept.stored:
        told["stored"] = False
    return told


def _commit(kept: SaveResult | None) -> dict[str, str]:
    """What the client of a stream is to send back: its headers went out before the answer was known."""
    return {} if kept is None or kept.commit is None else {"commit": kept.commit}


WRITERS: dict[WireFormat, Callable[[TurnResponse], Awaitable[web.StreamResponse]]] = {
    "text": write_text,
    "sse": write_sse,
    "json": write_json,
    "chatstream": write_cumulative_eos,
    "chatstream-older": write_cumulative,
}
