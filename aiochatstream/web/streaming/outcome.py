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
    """What becomes of one request, gathered while it is answered.

    exchange: set when a turn answers it.
    left: the client was found to be gone.
    """

    request: web.Request
    exchange: TurnResponse | None = None
    left: bool = False
    _reason: str | None = None

    def failed(self, error: BaseException) -> None:
        """``error`` keeps the client from its answer. Only words of it are kept: it may hold the whole request."""
        if isinstance(error, ConnectionError | asyncio.CancelledError) and is_gone(self.request):
            self.left = True
        else:
            kind = error.code if isinstance(error, ChatStreamError) else type(error).__name__
            self._reason = ": ".join(part for part in (kind, str(error)) if part)

    def message(self) -> str:
        """What to tell of it, now that it is over."""
        exchange = self.exchange
        if exchange is not None and self._reason is None:
            if isinstance(exchange.turn.last, Failed):
                self.failed(exchange.turn.last.error)
            elif exchange.response is None and is_gone(self.request):  # nobody is there to get the whole at once
                self.left = True
        if self.left:
            streaming = exchange is not None and exchange.response is not None and exchange.turn.text
            return DISCONNECTED_WHILE if streaming else DISCONNECTED_BEFORE
        return SUCCESS if self._reason is None else f"{UNKNOWN_ERROR}: {self._reason}"
