"""Relay of OpenAI's API: requests go to the servers of an :class:`UpstreamEngine` as they are, and responses back.

Tools, schemas, logprobs, thoughts, images and unknown fields reach the server, in whose words and limits the answer
then is. This server checks the key, queues the request, chooses the server, tries another one until the response has
begun, and counts the tokens. Of the body only the name of the model changes; ``stream_options.include_usage`` is added
to streams, and its chunk removed again, unless the client requests it. A response that breaks off ends with an error:
unlike an answer of a conversation, it is not resumed on another server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable

from aiohttp import web

from aiochatstream.engines import AsyncDeltaStream, Delta, OnDelta
from aiochatstream.engines.upstream import UpstreamEngine
from aiochatstream.engines.upstream.relay import EVENTS, JSON, RefusedRequest, RelayRequest
from aiochatstream.errors import ChatStreamError, UpstreamFailed
from aiochatstream.runtime.events import Ended, Failed, Heartbeat
from aiochatstream.runtime.running_turn import RunningTurn
from aiochatstream.web.openai.endpoint_context import ApiRequest
from aiochatstream.web.openai.errors import error_body
from aiochatstream.web.openai.generation import sse
from aiochatstream.web.openai.relay_request import read_relay_request
from aiochatstream.web.server import Server
from aiochatstream.web.streaming.streamed_response import HEARTBEAT, HEARTBEAT_SECONDS, STREAM_HEADERS, StreamedResponse


def is_relayed(server: Server) -> bool:
    """Return True if other servers generate the answers of ``server``."""
    return isinstance(server.engine, UpstreamEngine)


async def relay(received: ApiRequest, path: str) -> web.StreamResponse:
    """Send the response of the model's server, until its end or until the client disconnects.

    :param path: path of the endpoint at the server, for example ``/v1/chat/completions``.

    Raise :class:`~aiochatstream.errors.ChatStreamError` if the request is refused, or fails before the response begins.
    """
    server, engine = received.server, received.server.engine
    if not isinstance(engine, UpstreamEngine):
        raise TypeError("The engine has no servers to relay to.")
    try:
        relay_request = read_relay_request(received, path)
        copy = ResponseCopy(received.request, server, engine, relay_request)
        copy.turn = await server.begin_relay(copy.start, relay_request.answers)
    except ChatStreamError as error:
        server.metrics.refused(error.code)
        raise
    try:
        return await copy.response.send(copy.follow, server.disconnects, copy.stop)
    finally:
        copy.stop()


class RelayedResponse(StreamedResponse):
    """A response whose body comes from another server.

    request_id: id in the header ``X-Request-Id``.
    size: number of bytes of the body; None if it is unknown. Set before the headers are sent.
    """

    request_id = ""
    size: int | None = None

    def __init__(self, request: web.Request, write_timeout: float) -> None:
        super().__init__(request, write_timeout)
        self._opening = asyncio.Lock()

    @property
    def headers(self) -> dict[str, str]:
        return {**STREAM_HEADERS, "X-Request-Id": self.request_id}

    async def open(self, content_type: str) -> web.StreamResponse:
        if self.stream is not None:
            return self.stream
        async with self._opening:  # a heartbeat and the first byte may meet
            return await super().open(content_type)

    async def on_prepare(self, stream: web.StreamResponse) -> None:
        stream.content_length = self.size


class ResponseCopy:
    """The copying of a response from a server to a client. Receives the body in the task of the turn.

    turn: turn of the request.
    has_begun: True after the first byte of the body. The headers may have been sent before, with a heartbeat.
    """

    def __init__(
        self, request: web.Request, server: Server, engine: UpstreamEngine, relay_request: RelayRequest
    ) -> None:
        self.response = RelayedResponse(request, server.limits.write_timeout)
        self.has_begun = False
        self._server, self._engine, self._relay_request = server, engine, relay_request
        self._content_type = EVENTS
        self._whole = False
        self._client_error: Exception | None = None

    @property
    def turn(self) -> RunningTurn:
        """Turn of the request, set when it has begun."""
        return self._turn

    @turn.setter
    def turn(self, turn: RunningTurn) -> None:
        self._turn = turn
        self.response.request_id = f"req_{turn.message_id}"

    def start(self, on_delta: OnDelta) -> AsyncDeltaStream:
        """Start to copy, with a slot."""
        return AsyncDeltaStream(self._copy, on_delta)

    def stop(self) -> None:
        """Stop copying, or waiting for a slot. No effect after the end."""
        self._turn.stop("left")

    async def begin(self, content_type: str, size: int | None) -> None:
        """Begin the body. Raise :class:`~aiochatstream.errors.UpstreamFailed` if the headers announce another type."""
        if self.response.stream is not None and content_type != EVENTS:
            raise UpstreamFailed("The model's server has sent no stream.")
        self.has_begun = True
        self._content_type, self.response.size = content_type, size

    async def write(self, data: bytes, on_wait: Callable[[], None]) -> None:
        """Send a part of the body. If the client has left, or receives nothing for too long, stop."""
        self._turn.note_output(self._server.metrics.gap)
        try:
            await self.response.write_bytes(self._content_type, data, on_wait)
        except (ConnectionError, TimeoutError) as error:
            self._client_error = error
            self.stop()
            await asyncio.sleep(0)  # cancelled by the stop

    async def follow(self) -> web.StreamResponse:
        """Send heartbeats until the end of the turn, and then the end of the response.

        Raise the error of a turn that fails before the headers are sent.
        """
        last = await self._last_event()
        if self._client_error is not None:
            raise self._client_error
        if self._whole:
            return await self.response.finish(self._content_type)
        if isinstance(last, Failed):
            return await self._fail(last.error)
        return await self._fail(UpstreamFailed("The answer took too long and was cut off."))

    async def _copy(self) -> AsyncGenerator[Delta, None]:
        async for delta in self._engine.relay(self._relay_request, self):
            self._whole = True
            yield delta

    async def _last_event(self) -> Ended | Failed:
        with self._turn.heartbeats(HEARTBEAT_SECONDS):
            while True:
                event = await self._turn.next_event()
                if isinstance(event, Ended | Failed):
                    return event
                if isinstance(event, Heartbeat) and self._relay_request.stream and self._content_type == EVENTS:
                    await self.response.write(EVENTS, HEARTBEAT)

    async def _fail(self, error: ChatStreamError) -> web.StreamResponse:
        """Send ``error``, as an event if the headers of a stream are sent; raise it if none are sent."""
        stream = self.response.stream
        if stream is None:
            if not isinstance(error, RefusedRequest):
                raise error
            headers = {**self.response.headers, "Content-Type": f"{JSON}; charset=utf-8"}
            return web.Response(body=error.body, status=error.response_status, headers=headers)
        if stream.content_type != EVENTS:
            self.response.abort()
            return stream
        body = json.loads(error.body) if isinstance(error, RefusedRequest) else error_body(error)
        await self.response.write(EVENTS, sse(body))
        return await self.response.finish(EVENTS)
