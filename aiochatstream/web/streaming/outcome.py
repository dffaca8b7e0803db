"""Outcome of a request, for the application's callback."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web

from aiochatstream.errors import ChatStreamError
from aiochatstream.runtime.events import Failed
from aiochatstream.web.streaming.disconnects import is_gone
from aiochatstream.web.streaming.formats import TurnResponse

SUCCESS = "success"
DISCONNECTED_BEFORE = "client_disconnected_before_streaming"
DISCONNECTED_WHILE = "client_disconnected_while_streaming"
UNKNOWN_ERROR = "unknown_error_occurred"


@dataclass
class Outcome:
    """Outcome of a request, updated while the request is handled.

    response: set when a turn answers the request.
    disconnected: True if the client has disconnected.
    """

    request: web.Request
    response: TurnResponse | None = None
    disconnected: bool = False
    _reason: str | None = None

    def record_failure(self, error: BaseException) -> None:
        """Record an error that prevents a complete answer. Only its text is kept, as it may refer to the request."""
        if isinstance(error, ConnectionError | asyncio.CancelledError) and is_gone(self.request):
            self.disconnected = True
        else:
            kind = error.code if isinstance(error, ChatStreamError) else type(error).__name__
            self._reason = ": ".join(part for part in (kind, str(error)) if part)

    def message(self) -> str:
        """Return the message for the callback, after the end of the request."""
        response = self.response
        if response is not None and self._reason is None:
            if isinstance(response.turn.last, Failed):
                self.record_failure(response.turn.last.error)
            elif response.stream is None and is_gone(self.request):  # disconnected before an unstreamed response
                self.disconnected = True
        if self.disconnected:
            streaming = response is not None and response.stream is not None and response.turn.text
            return DISCONNECTED_WHILE if streaming else DISCONNECTED_BEFORE
        return SUCCESS if self._reason is None else f"{UNKNOWN_ERROR}: {self._reason}"
