"""Request handlers: an application's own code around ``POST /chat_stream``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from aiohttp import web

from aiochatstream.web.endpoints.chat import respond
from aiochatstream.web.server import Server
from aiochatstream.web.streaming.callbacks import Callback


class AbstractRequestHandler(ABC):
    """Base class of request handlers, for ``compat.ChatStream(request_handler=...)``.

    A handler answers all requests to /chat_stream. Subclass :class:`SimpleSessionRequestHandler` to run code before the
    answer, or to refuse requests; a ``conversation_store`` stores conversations.

    server: the ChatStream that the handler belongs to, set by its constructor.
    """

    server: Server

    @abstractmethod
    def get_request_handler_type(self) -> str:
        """Return a name for this kind of handler."""

    @abstractmethod
    async def process_request(
        self,
        request: web.Request,
        request_body: dict[str, Any] | bytes | None,
        streaming_finished_callback: Callback | None,
    ) -> web.StreamResponse:
        """Return the response to ``POST /chat_stream``. The client's role allows the endpoint.

        :param request_body: content of the body if it has been read.
        :param streaming_finished_callback: the callback of
            :meth:`~aiochatstream.ChatStream.handle_chat_stream_request`; only
            :meth:`SimpleSessionRequestHandler.process_request` calls it.

        Raise :class:`~aiochatstream.ChatStreamError` or an HTTP error of aiohttp to refuse the request.
        """


class SimpleSessionRequestHandler(AbstractRequestHandler):
    """The default: answers with the conversation of the session, or of the ``conversation_store``."""

    def get_request_handler_type(self) -> str:
        """Return ``http_session``."""
        return "http_session"

    async def process_request(
        self,
        request: web.Request,
        request_body: dict[str, Any] | bytes | None,
        streaming_finished_callback: Callback | None,
    ) -> web.StreamResponse:
        """Return the answer, and call the callback after it."""
        return await respond(self.server, request, request_body, streaming_finished_callback)
