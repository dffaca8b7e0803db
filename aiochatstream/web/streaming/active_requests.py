"""Requests until their responses are sent, so that none of them stays for longer than it may."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import web

BYTES_PER_SECOND = 16 << 10
"""Pace at which a client must take a response after the first ``write_timeout``."""

CHECKS = 4
"""Looks at what is not taken, in each ``write_timeout``."""

LINGERING_SECONDS = 11.0
"""aiohttp reads on for 10 seconds after a response, if the body that it answers has not arrived."""

ENDING_SECONDS = 2.0
"""Seconds that responses have at a shutdown, when no answer is running any more."""


@dataclass
class PendingResponse:
    """A response of ``size`` bytes that is not sent: how much of it is waiting, and for how many looks."""

    size: int
    looks: int = 0
    waiting: int = 0
    unchanged: int = 0

    def is_late(self, waiting: int, write_timeout: float) -> bool:
        """Look at the bytes that are waiting now; return whether the client has had its time."""
        self.looks += 1
        self.unchanged = self.unchanged + 1 if waiting == self.waiting else 0
        self.waiting = waiting
        seconds = self.looks * write_timeout / CHECKS
        is_slow = seconds > write_timeout and self.size - waiting < seconds * BYTES_PER_SECOND
        return is_slow or self.unchanged >= CHECKS


class ActiveRequests:
    """The requests of one server. Each is active until aiohttp's task for it has sent the response.

    :param write_timeout: seconds that a client may take nothing of a response.
    """

    def __init__(self, write_timeout: float) -> None:
        self._write_timeout = write_timeout
        self._requests: dict[asyncio.Task[object], web.Request] = {}
        self._lingering: dict[asyncio.Task[object], web.Request] = {}
        self._looks: dict[asyncio.Task[object], asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: web.Request) -> None:
        """Begin with ``request``, in the task that aiohttp has made for it."""
        task = _this_task()
        if task not in self._requests:
            self._requests[task] = request
            task.add_done_callback(self._remove)

    def watch_response(self, request: web.Request, response: web.StreamResponse) -> None:
        """Abort the connection of ``request`` if its client takes nothing, or takes ``response`` too slowly."""
        if not response.prepared and not request.content.is_eof():
            response.force_close()
        body = response.body if isinstance(response, web.Response) else None
        size = len(body) if isinstance(body, bytes | bytearray) else 0
        self._look_later(_this_task(), PendingResponse(size))

    async def end(self) -> None:
        """Wait for the responses for a moment, then abort the connections of those that are not sent."""
        others = self._requests.keys() - {_this_task()}
        if others:
            await asyncio.wait(others, timeout=ENDING_SECONDS)
        for request in (*self._requests.values(), *self._lingering.values()):
            abort(request)

    def _look_later(self, task: asyncio.Task[object], unsent: PendingResponse) -> None:
        loop = asyncio.get_running_loop()
        self._looks[task] = loop.call_later(self._write_timeout / CHECKS, self._look, task, unsent)

    def _look(self, task: asyncio.Task[object], unsent: PendingResponse) -> None:
        request = self._requests[task]
        transport = request.transport
        waiting = 0 if transport is None else transport.get_write_buffer_size()
        if waiting and unsent.is_late(waiting, self._write_timeout):
            abort(request)
        self._look_later(task, unsent)

    def _remove(self, task: asyncio.Task[object]) -> None:
        request = self._requests.pop(task)
        if task in self._looks:
            self._looks.pop(task).cancel()
        if not request.content.is_eof():
            self._lingering[task] = request
            asyncio.get_running_loop().call_later(LINGERING_SECONDS, self._lingering.pop, task)


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("A request is handled in a task.")
    return task


def abort(request: web.Request) -> None:
    """End the connection of ``request`` so that its client cannot take what it has for the whole response.

    A reset, because if the end of the connection is the end of the body (HTTP/1.0) a plain close looks right.
    """
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
