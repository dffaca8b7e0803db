"""Tracking of requests until their responses are sent, with a time limit for slow clients."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import web

BYTES_PER_SECOND = 16 << 10
"""Minimum rate at which a client must receive a response after the first ``write_timeout``."""

CHECKS = 4
"""Checks of the unsent bytes during each ``write_timeout``."""

LINGERING_SECONDS = 11.0
"""Seconds after a response during which aiohttp may still read the rest of the request's body (at most 10)."""

ENDING_SECONDS = 2.0
"""Seconds to send responses during a shutdown, after all answers have ended."""


@dataclass
class PendingResponse:
    """A response of ``size`` bytes that is not yet sent.

    waiting: unsent bytes at the last check.
    unchanged: number of consecutive checks with this number of unsent bytes.
    """

    size: int
    checks: int = 0
    waiting: int = 0
    unchanged: int = 0

    def is_late(self, waiting: int, write_timeout: float) -> bool:
        """Record the number of unsent bytes; return True if the client is too slow."""
        self.checks += 1
        self.unchanged = self.unchanged + 1 if waiting == self.waiting else 0
        self.waiting = waiting
        seconds = self.checks * write_timeout / CHECKS
        is_slow = seconds > write_timeout and self.size - waiting < seconds * BYTES_PER_SECOND
        return is_slow or self.unchanged >= CHECKS


class ActiveRequests:
    """The active requests of a server. A request is active until its aiohttp task has sent the response.

    :param write_timeout: maximum seconds for which a client may receive nothing of a response.
    """

    def __init__(self, write_timeout: float) -> None:
        self._write_timeout = write_timeout
        self._requests: dict[asyncio.Task[object], web.Request] = {}
        self._lingering: dict[asyncio.Task[object], web.Request] = {}
        self._checks: dict[asyncio.Task[object], asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: web.Request) -> None:
        """Track ``request``, whose aiohttp task is the current one."""
        task = _current_task()
        if task not in self._requests:
            self._requests[task] = request
            task.add_done_callback(self._remove)

    def watch_response(self, request: web.Request, response: web.StreamResponse) -> None:
        """Abort the connection of ``request`` if its client receives nothing, or ``response`` too slowly."""
        if not response.prepared and not request.content.is_eof():
            response.force_close()
        body = response.body if isinstance(response, web.Response) else None
        size = len(body) if isinstance(body, bytes | bytearray) else 0
        self._schedule_check(_current_task(), PendingResponse(size))

    async def close(self) -> None:
        """Wait briefly for the responses, then abort the connections of the unsent ones."""
        others = self._requests.keys() - {_current_task()}
        if others:
            await asyncio.wait(others, timeout=ENDING_SECONDS)
        for request in (*self._requests.values(), *self._lingering.values()):
            abort(request)

    def _schedule_check(self, task: asyncio.Task[object], pending: PendingResponse) -> None:
        loop = asyncio.get_running_loop()
        self._checks[task] = loop.call_later(self._write_timeout / CHECKS, self._check, task, pending)

    def _check(self, task: asyncio.Task[object], pending: PendingResponse) -> None:
        request = self._requests[task]
        transport = request.transport
        waiting = 0 if transport is None else transport.get_write_buffer_size()
        if waiting and pending.is_late(waiting, self._write_timeout):
            abort(request)
        self._schedule_check(task, pending)

    def _remove(self, task: asyncio.Task[object]) -> None:
        request = self._requests.pop(task)
        if task in self._checks:
            self._checks.pop(task).cancel()
        if not request.content.is_eof():
            self._lingering[task] = request
            asyncio.get_running_loop().call_later(LINGERING_SECONDS, self._lingering.pop, task)


def _current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("Requests must be handled in a task.")
    return task


def abort(request: web.Request) -> None:
    """Reset the connection of ``request``, so that its client cannot mistake a part for the whole response.

    A plain close would look like a success if the end of the connection ends the body (HTTP/1.0).
    """
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
