"""Tells the application how each of its requests came out."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web

from aiochatstream.errors import ChatStreamError
from aiochatstream.runtime.events import Failed
from aiochatstream.web.streaming.disconnects import is_gone
from aiochatstream.web.streaming.formats import Exchange

logger = logging.getLogger(__name__)

Callback = Callable[[web.Request, str], object]
"""What an application gives to be told ``(request, message)``: a plain function or a coroutine function."""

SUCCESS = "success"
LEFT_BEFORE = "client_disconnected_before_streaming"
LEFT_WHILE = "client_disconnected_while_streaming"
UNKNOWN_ERROR = "unknown_error_occurred"

LAST_SECONDS = 2.0
"""How long callbacks that still run may take when the application ends."""


@dataclass
class Outcome:
    """What becomes of one request, gathered while it is answered.

    exchange: set when a turn answers it.
    left: the client was found to be gone.
    """

    request: web.Request
    exchange: Exchange | None = None
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
            return LEFT_WHILE if streaming else LEFT_BEFORE
        return SUCCESS if self._reason is None else f"{UNKNOWN_ERROR}: {self._reason}"


class Completions:
    """Calls back, each time in a task of its own: neither a response nor a slot waits for what an app does there."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=LAST_SECONDS)
        if late:
            logger.warning("Cancelling %d callbacks that still run when the application ends.", len(late))
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=LAST_SECONDS)

    def tell(self, callback: Callback, request: web.Request, message: str) -> None:
        """Have ``callback(request, message)`` called soon. What it raises is logged."""
        task = asyncio.create_task(_call(callback, request, message), name="callback")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _call(callback: Callback, request: web.Request, message: str) -> None:
    try:
        result = callback(request, message)
        if inspect.isawaitable(result):
            await result
    except Exception:
        logger.exception("The callback of %s %s failed", request.method, request.path)
