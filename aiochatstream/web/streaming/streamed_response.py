"""Responses that are sent in pieces to clients that may be slow or disconnect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from aiochatstream.web.json import COMMON_HEADERS
from aiochatstream.web.streaming.active_requests import abort
from aiochatstream.web.streaming.disconnects import DisconnectWatcher, is_gone

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
"""Seconds between comment lines in an idle event stream, so that proxies keep it open."""

HEARTBEAT = ": still here\n\n"

BUFFER_BYTES = 1 << 14
"""asyncio's low-water mark: a write that leaves fewer bytes in the transport's buffer never waits."""

STREAM_HEADERS = {**COMMON_HEADERS, "X-Accel-Buffering": "no"}


class StreamedResponse:
    """A response to a request, sent in pieces.

    stream: the aiohttp response, set when its headers are sent.

    :param write_timeout: maximum seconds for which the client may receive nothing.
    """

    def __init__(self, request: web.Request, write_timeout: float) -> None:
        self.request, self.write_timeout = request, write_timeout
        self.stream: web.StreamResponse | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the response."""
        return STREAM_HEADERS

    async def on_prepare(self, stream: web.StreamResponse) -> None:
        """Prepare ``stream``; called just before its headers are sent."""

    async def open(self, content_type: str) -> web.StreamResponse:
        """Send the headers, if they are not sent yet. Raise ConnectionResetError if the client has disconnected."""
        if self.stream is None:
            if is_gone(self.request):
                raise ConnectionResetError("The client disconnected before the headers were sent.")
            stream = web.StreamResponse(headers=self.headers)
            stream.content_type = content_type
            stream.charset = "utf-8"
            await self.on_prepare(stream)
            await stream.prepare(self.request)
            self.stream = stream
        return self.stream

    async def write(self, content_type: str, text: str) -> None:
        """Send ``text``. Raise TimeoutError if the client receives nothing for ``write_timeout`` seconds."""
        await self.write_bytes(content_type, text.encode())

    async def write_bytes(self, content_type: str, data: bytes, on_wait: Callable[[], None] = lambda: None) -> None:
        """Send ``data``. Raise the errors of :meth:`write`.

        :param on_wait: called if the client is slow, before waiting for it.
        """
        stream = self.stream or await self.open(content_type)
        transport = self.request.transport
        if transport is not None and transport.get_write_buffer_size() + len(data) < BUFFER_BYTES:
            await stream.write(data)  # never waits; a timeout would cost more than the write
            return
        on_wait()
        async with asyncio.timeout(self.write_timeout):
            await stream.write(data)

    async def finish(self, content_type: str) -> web.StreamResponse:
        """Send the end of the body. Raise the errors of :meth:`write`."""
        stream = await self.open(content_type)
        async with asyncio.timeout(self.write_timeout):
            await stream.write_eof()
        return stream

    def abort(self) -> None:
        """Reset the connection, so that the client cannot mistake a part for the whole answer."""
        abort(self.request)

    async def send(
        self,
        write: Callable[[], Awaitable[web.StreamResponse]],
        disconnects: DisconnectWatcher,
        on_disconnect: Callable[[], None],
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> web.StreamResponse:
        """Return the response of ``write``. If ``write`` fails after the headers, reset the connection.

        :param on_disconnect: called when the client disconnects, or receives nothing for too long.
        :param on_failure: called with any other error that prevents a complete answer.

        Raise the errors of ``write`` before the headers, unless the client has disconnected.
        """
        try:
            with disconnects.watch(self.request, on_disconnect):
                return await write()
        except Exception as error:
            if self.stream is None:
                if not isinstance(error, ConnectionError):
                    raise
                on_failure(error)
                return web.Response(status=499)  # not sent: the client has disconnected
            if isinstance(error, ConnectionError | TimeoutError):
                on_disconnect()
            else:
                on_failure(error)
                logger.exception("The response to %s failed after its headers", self.request.path)
            self.abort()
            return self.stream
