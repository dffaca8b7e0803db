"""Detection of clients that disconnect.

aiohttp reports a disconnect only at a handler's next write (or cancels the handler, with ``handler_cancellation``). A
handler that waits for a slot or a prefill does not write. Therefore a task polls all connections.
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
"""Event by which Linux reports a disconnect even if aiohttp has paused reading (a client that pipelines requests)."""


def is_gone(request: web.Request) -> bool:
    """Return True if the client of ``request`` has closed its connection."""
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
    """Calls back, within 50 ms, when the client of a watched request disconnects. Its length is the number of requests.

    Usable once, as a context manager.
    """

    def __init__(self) -> None:
        self._watched: dict[object, tuple[web.Request, Callable[[], None]]] = {}
        self._has_requests = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._watched)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._poll())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @contextmanager
    def watch(self, request: web.Request, on_disconnect: Callable[[], None]) -> Iterator[None]:
        """Call ``on_disconnect`` once, if the client of ``request`` disconnects during the block."""
        watch = object()
        self._watched[watch] = (request, on_disconnect)
        self._has_requests.set()
        try:
            yield
        finally:
            self._watched.pop(watch, None)

    async def _poll(self) -> None:
        while True:
            if not self._watched:
                self._has_requests.clear()
                await self._has_requests.wait()
            for watch, (request, on_disconnect) in list(self._watched.items()):
                try:
                    if is_gone(request):
                        del self._watched[watch]
                        on_disconnect()
                        if request.transport is not None:
                            request.transport.abort()  # pipelined requests must not be answered
                except Exception:  # an error of one request must not end the task
                    logger.exception("Could not check whether a client has disconnected")
                    self._watched.pop(watch, None)
                del request, on_disconnect  # release the request before the next round
            await asyncio.sleep(POLL_SECONDS)
