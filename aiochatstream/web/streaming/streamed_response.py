"""StreamedResponse a response piece by piece to a client that may be slow, or leave."""

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
"""An event stream with nothing to send gets a comment line this often, so that proxies keep it open."""

HEARTBEAT = ": still here\n\n"

BUFFER_BYTES = 1 << 14
"""A write that leaves less than this in the transport's buffer never waits: it is asyncio's low-water mark."""

STREAM_HEADERS = {**COMMON_HEADERS, "X-Accel-Buffering": "no"}


class StreamedResponse:
    """One request, and the response once its headers are out.

    :param write_timeout: seconds that the client may take nothing.
    """

    def __init__(self, request: web.Request, write_timeout: float) -> None:
        self.request, self.write_timeout = request, write_timeout
        self.response: web.StreamResponse | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Those of the response."""
        return STREAM_HEADERS

    async def on_prepare(self, response: web.StreamResponse) -> None:
        """What is to be done just before the headers go out."""

    async def open(self, content_type: str) -> web.StreamResponse:
        """Send the headers, if they are not out yet."""
        if self.response is None:
            if is_gone(self.request):
                raise ConnectionResetError("The client left before the headers.")
            response = web.StreamResponse(headers=self.headers)
            response.content_type = content_type
            response.charset = "utf-8"
            await self.on_prepare(response)
            await response.prepare(self.request)
            self.response = response
        return self.response

    async def write(self, content_type: str, text: str) -> None:
        """Send ``text``. Raises TimeoutError when the client takes nothing for too long."""
        response = await self.open(content_type)
        data = text.encode()
        transport = self.request.transport
        if transport is not None and transport.get_write_buffer_size() + len(data) < BUFFER_BYTES:
            await response.write(data)  # cannot wait; a timeout for each piece would cost more than the piece
        else:
            async with asyncio.timeout(self.write_timeout):
                await response.write(data)

    async def finish(self, content_type: str) -> web.StreamResponse:
        """Send the end of the body. Raises TimeoutError as :meth:`write`."""
        response = await self.open(content_type)
        async with asyncio.timeout(self.write_timeout):
            await response.write_eof()
        return response

    def abort(self) -> None:
        """End the connection so that the client cannot take what it has for the whole answer."""
        abort(self.request)

    async def send(
        self,
        write: Callable[[], Awaitable[web.StreamResponse]],
        presence: DisconnectWatcher,
        on_gone: Callable[[], None],
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> web.StreamResponse:
        """What ``write`` makes of it; where that breaks off after the headers, so does the connection.

        :param on_gone: called when the client is found to be gone, or to take nothing any more.
        :param on_failure: told of what else keeps the client from its whole answer.

        Raises what ``write`` raises before the headers, unless the client left.
        """
        try:
            with presence.watch(self.request, on_gone):
                return await write()
        except Exception as error:
            if self.response is None:
                if not isinstance(error, ConnectionError):
                    raise
                on_failure(error)
                return web.Response(status=499)  # the client left; nobody reads this
            if isinstance(error, ConnectionError | TimeoutError):
                on_gone()
            else:
                on_failure(error)
                logger.exception("An answer of %s broke off", self.request.path)
            self.abort()
            return self.response
