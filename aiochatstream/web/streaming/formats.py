"""Wire formats of answers: plain text, server-sent events, a JSON object, and the formats of chatstream.

Each format is a function that sends the events of a turn to a :class:`TurnResponse`.
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
from aiochatstream.runtime.events import Ended, Event, Failed, Heartbeat, Queued, Started, Text, Thinking
from aiochatstream.runtime.running_turn import RunningTurn
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
"""Values of the header :data:`WIRE_HEADER`. Both formats are text/plain, so ``Accept`` cannot select them."""

END_TOKEN = "<::EOS::>"  # noqa: S105 - no password
UNLIKE_END_TOKEN = "<::EOS:: >"  # noqa: S105


def wire_format_of(request: web.Request, default: WireFormat) -> WireFormat:
    """Return the format that the request's headers select; otherwise ``default``.

    Raise :class:`~aiochatstream.errors.BadRequest` for an unknown value of :data:`WIRE_HEADER`.
    """
    values = request.headers.getall(WIRE_HEADER, None)
    if values is None:
        return choose_format(request.headers.getall("Accept", []), default)
    try:
        return WIRE_FORMATS[", ".join(values)]
    except KeyError:
        raise BadRequest(f"{WIRE_HEADER}: must be {' or '.join(map(repr, WIRE_FORMATS))}, or absent.") from None


def choose_format(accept: Sequence[str], default: WireFormat) -> WireFormat:
    """Return the format that the ``Accept`` headers prefer; ``default`` if they contain no supported media type."""
    best, best_quality = default, 0.0
    for media_type, quality in parse_qualities(accept).items():
        candidate = default if media_type == "*/*" else MEDIA_TYPES.get(media_type)
        if candidate is not None and quality > best_quality:
            best, best_quality = candidate, quality
    return best


class TurnResponse(StreamedResponse):
    """The response to a request that a turn answers.

    :param write_timeout: maximum seconds for which the client may receive nothing.
    :param dev_tool: whether the client's role has access to the developer tool.
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
        self.resources = ExitStack()
        """Resources to release after the response."""

    @property
    def headers(self) -> dict[str, str]:
        """Headers of all formats."""
        return {
            **STREAM_HEADERS,
            MESSAGE_ID_HEADER: self.turn.message_id,
            **({DEV_TOOL_HEADER: "enabled"} if self.dev_tool else {}),
        }

    async def save_session(self) -> None:
        """Save the state of the turn in the session, just before the headers are sent."""
        if not self.turn.discarded:
            answered = self.turn.ended.is_set()
            await self.user.put_in_session(self.conversation, self.turn.conversation, answered=answered)

    async def on_prepare(self, stream: web.StreamResponse) -> None:
        """Save the session, and set its cookie on ``stream``."""
        await self.save_session()
        await self.user.save_with_stream(stream)
        self.resources.enter_context(self.user.pinned())  # a new session has its identity only now

    @contextmanager
    def unbuffered(self) -> Iterator[None]:
        """Make :meth:`drain` wait, during the block, until the transport's buffer is empty."""
        transport = self.request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("The client disconnected before the headers were sent.")
        transport.set_write_buffer_limits(high=1, low=0)
        try:
            yield
        finally:
            if not transport.is_closing():  # the connection may serve more requests
                transport.set_write_buffer_limits()

    async def drain(self) -> None:
        """Wait until the transport has sent the buffered data. Raise the errors of :meth:`write`."""
        transport = self.request.transport
        if transport is not None and transport.get_write_buffer_size():
            async with asyncio.timeout(self.write_timeout):
                await self.request.writer.drain()


async def write_text(response: TurnResponse) -> web.StreamResponse:
    """Send each new text as a chunk; see :func:`_write_plain` for the headers."""
    if hides_truncation(response.request):
        return await _write_whole(response, lambda text: text)
    return await _write_plain(response, lambda text: response.write("text/plain", text))


def hides_truncation(request: web.Request) -> bool:
    """Return True if the client cannot detect a truncated body.

    With HTTP/1.0 the end of the connection ends the body, and a Unix socket cannot be reset. (Event streams have an
    explicit end.)
    """
    connection = request.get_extra_info("socket")
    return request.version < HttpVersion11 and connection is not None and connection.family == AF_UNIX


async def _write_whole(response: TurnResponse, chunk: Callable[[str], str]) -> web.StreamResponse:
    """Send the complete answer with its length."""
    await _wait_for_end(response)
    return web.Response(text=chunk(response.turn.text), headers=response.headers)


async def _wait_for_end(response: TurnResponse) -> Ended:
    """Wait for the end of the turn, and save the session. Raise the error of a failed turn."""
    while True:
        event = await response.turn.next_event()
        if isinstance(event, Failed):
            if response.turn.text:  # which is saved as interrupted
                await response.save_session()
            raise event.error
        if isinstance(event, Ended):
            await response.save_session()
            return event


async def _write_plain(response: TurnResponse, write: Callable[[str], Awaitable[None]]) -> web.StreamResponse:
    """Call ``write`` with each new text, until the end of the turn.

    The headers are sent with the first text, so that an earlier failure has a status; during a long thought, which this
    format cannot show, with the first heartbeat, so that the connection does not seem dead.
    """
    with response.turn.heartbeats(HEARTBEAT_SECONDS):
        while True:
            event = await response.turn.next_event()
            if isinstance(event, Text):
                await write(event.text)
            elif isinstance(event, Heartbeat) and response.turn.thinking:
                await response.open("text/plain")
            elif isinstance(event, Ended):
                return await response.finish("text/plain")
            elif isinstance(event, Failed):
                if response.stream is None:
                    raise event.error
                response.abort()
                return response.stream


async def write_cumulative_eos(response: TurnResponse) -> web.StreamResponse:
    """Send, as chatstream, the whole answer so far and the end token in each chunk.

    An end token in the answer itself is sent with a space before its ``>``. Clients would otherwise take it for the end
    of a chunk and lose the text before it. The history contains the original text.
    """
    return await _write_cumulative(response, lambda text: text.replace(END_TOKEN, UNLIKE_END_TOKEN) + END_TOKEN)


async def write_cumulative(response: TurnResponse) -> web.StreamResponse:
    """Send, as older versions of chatstream, the whole answer so far in each chunk, for clients that treat each read as
    a chunk.
    """
    return await _write_cumulative(response, lambda text: text)


async def _write_cumulative(response: TurnResponse, chunk: Callable[[str], str]) -> web.StreamResponse:
    # A chunk contains all text before it. While the client receives a chunk, further text accumulates, and one chunk
    # sends all of it. So the bytes grow with the square of the answer's length only for clients that keep up.
    if hides_truncation(response.request):
        return await _write_whole(response, chunk)
    received = sent = 0

    async def write(text: str) -> None:
        nonlocal received, sent
        received += len(text)
        if received <= sent:
            return
        await response.open("text/plain")  # may wait for the session's storage while text accumulates
        answer = response.turn.text  # includes the text of the pending events
        await response.write("text/plain", chunk(answer))
        sent = len(answer)
        await response.drain()

    with response.unbuffered():
        return await _write_plain(response, write)


async def write_sse(response: TurnResponse) -> web.StreamResponse:
    """Send each event of the turn. The headers are sent immediately, so that clients can show queue positions."""
    await response.open("text/event-stream")
    with response.turn.heartbeats(HEARTBEAT_SECONDS):
        while True:
            events = await response.turn.next_events()
            await response.write("text/event-stream", "".join([sse_event(response.turn, event) for event in events]))
            if isinstance(events[-1], Ended | Failed):
                return await response.finish("text/event-stream")


def sse_event(turn: RunningTurn, event: Event) -> str:
    """Return ``event`` as a server-sent event."""
    name: str
    data: dict[str, Any]
    match event:
        case Text(text):  # first and without a dict: the vast majority of events
            return f'event: delta\ndata: {{"text":{dumps(text)}}}\n\n'
        case Thinking(text):
            return f'event: thinking\ndata: {{"text":{dumps(text)}}}\n\n'
        case Heartbeat():
            return HEARTBEAT
        case Queued(position):
            name, data = "queued", {"position": position}
        case Started():
            name, data = "start", {"message_id": turn.message_id}
        case Ended():
            name = "done"
            data = {"message_id": turn.message_id, **answer_summary(event), **_commit_token(event.save_result)}
        case Failed(error):
            name, data = "error", {"error": error_body(error), **_commit_token(event.save_result)}
    return f"event: {name}\ndata: {dumps(data)}\n\n"


async def write_json(response: TurnResponse) -> web.StreamResponse:
    """Send a JSON object at the end of the turn."""
    ended = await _wait_for_end(response)
    turn = response.turn
    thoughts = {"thinking": turn.thinking} if turn.thinking else {}
    body = {"text": turn.text, **thoughts, "message_id": turn.message_id, **answer_summary(ended)}
    return json_response(body, headers=response.headers)


def answer_summary(ended: Ended) -> dict[str, Any]:
    """Return the finish reason, the usage, the timing and the saved state of an answer as JSON."""
    saved = {} if ended.save_result is None else save_summary(ended.save_result)
    return {
        "finish_reason": ended.finish_reason,
        "usage": ended.usage._asdict(),
        "timing": ended.timing._asdict(),
        **saved,
    }


def save_summary(result: SaveResult) -> dict[str, Any]:
    """Return the state of a saved conversation as JSON."""
    summary: dict[str, Any] = {"turn": result.conversation.number}
    if result.dropped_turns:
        summary["dropped_turns"] = result.dropped_turns
    if not result.stored:
        summary["stored"] = False
    return summary


def _commit_token(result: SaveResult | None) -> dict[str, str]:
    """Return the token for ``POST /commit``, which the client sends back because the headers preceded the answer."""
    return {} if result is None or result.commit is None else {"commit": result.commit}


WRITERS: dict[WireFormat, Callable[[TurnResponse], Awaitable[web.StreamResponse]]] = {
    "text": write_text,
    "sse": write_sse,
    "json": write_json,
    "chatstream": write_cumulative_eos,
    "chatstream-older": write_cumulative,
}
