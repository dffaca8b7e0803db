"""Callbacks of the application, called when a request is over."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web

logger = logging.getLogger(__name__)

Callback = Callable[[web.Request, str], object]
"""What an application gives to be told ``(request, message)``: a plain function or a coroutine function."""

CLOSE_SECONDS = 2.0
"""How long callbacks that still run may take when the application ends."""


class Callbacks:
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
        _, late = await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        if late:
            logger.warning("Cancelling %d callbacks that still run when the application ends.", len(late))
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=CLOSE_SECONDS)

    def call(self, callback: Callback, request: web.Request, message: str) -> None:
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
