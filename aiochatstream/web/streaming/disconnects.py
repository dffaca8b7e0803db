"""Notices clients that are gone.

aiohttp tells a handler of it only at its next write (or cancels it, where ``handler_cancellation`` is on); one that
waits in the queue, or for a prefill, writes nothing. So one task looks at all connections.
"""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from aiohttp import web

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05

POLLRDHUP = getattr(select, "POLLRDHUP", 0)
"""Linux tells that the other side has closed even where aiohttp reads nothing (a client that sent ahead)."""


def is_gone(request: web.Request) -> bool:
    """Whether the client of ``request`` has closed its connection."""
    transport = request.transport
    if transport is None or transport.is_closing():
        return True
    connection = transport.get_extra_info("socket")
    if not POLLRDHUP or connection is None:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), POLLRDHUP)
    return bool(poll.poll(0))


class DisconnectWatcher:
    """Calls back, within 50 ms, when the client of a watched request is gone."""

    def __init__(self) -> None:
        self._watched: dict[object, tuple[web.Request, Callable[[], None]]] = {}
        self._any = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @contextmanager
    def watch(self, request: web.Request, on_gone: Callable[[], None]) -> Iterator[None]:
        """Call ``on_gone`` once, when the client of ``request`` is gone before the end of the block."""
        watch = object()
        self._watched[watch] = (request, on_gone)
        self._any.set()
        try:
            yield
        finally:
            self._watched.pop(watch, None)

    async def _look(self) -> None:
        while True:
            if not self._watched:
                self._any.clear()
                await self._any.wait()
            for watch, (request, on_gone) in list(self._watched.items()):
                try:
                    if is_gone(request):
                        del self._watched[watch]
                        on_gone()
                        if request.transport is not None:
                            request.transport.abort()  # what it may have sent ahead is not to be answered
                except Exception:  # of one request; the others are watched on
                    logger.exception("A client cannot be watched")
                    self._watched.pop(watch, None)
                del request, on_gone  # a request must not live on here
            await asyncio.sleep(POLL_SECONDS)
