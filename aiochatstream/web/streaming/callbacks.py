"""Callbacks of the application, called after a request."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.runtime.running_turn import RunningTurn

logger = logging.getLogger(__name__)

Callback = Callable[[web.Request, str], object]
"""A plain function or a coroutine function, called with ``(request, message)``."""

CONVERSATION = web.RequestKey("aiochatstream_conversation", Conversation)
"""Key of the conversation in a request whose callback is called."""

CLOSE_SECONDS = 2.0
"""Seconds to wait for running callbacks when the application ends."""


class Callbacks:
    """Runs callbacks in separate tasks, so that responses and slots do not wait for them."""

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
            logger.warning("The application ends: cancelling %d running callbacks.", len(late))
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=CLOSE_SECONDS)

    def call(self, callback: Callback, request: web.Request, message: str, turn: RunningTurn | None) -> None:
        """Schedule ``callback(request, message)``. Its exceptions are logged.

        :param turn: the turn that answered the request. The callback is called after its end, with
            ``request[CONVERSATION]``; None if there is no turn.
        """
        task = asyncio.create_task(_call(callback, request, message, turn), name="callback")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _call(callback: Callback, request: web.Request, message: str, turn: RunningTurn | None) -> None:
    try:
        if turn is not None and turn.base is not None:
            await turn.wait_ended()
            request[CONVERSATION] = turn.conversation
        result = callback(request, message)
        if inspect.isawaitable(result):
            await result
    except Exception:
        logger.exception("The callback of %s %s failed", request.method, request.path)
