"""A client of raw bytes, whose CPU usage is low enough that the servers are the bottleneck."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from servers import MARK, BenchServer

MEDIA_TYPES = {"text": "text/plain", "sse": "text/event-stream"}
CHATSTREAM = "chatstream"
"""Wire format of chatstream 0.3.0, whose chunks are the whole text so far and ``<::EOS::>``."""
TIMESTAMP = re.compile(rb"(\d{8,})" + MARK.encode())
END = b"\r\n0\r\n\r\n"
"""The last chunk. No header and no other chunk of the servers contains these bytes."""


@dataclass
class Tally:
    """Totals of all clients of a round.

    chunks_per_answer: expected number of chunks.
    mark: text that each chunk contains once.
    deadline: time of the last new request.
    reads: number of reads from sockets.
    error: description of the first error; empty if there is none.
    latencies: seconds between generation and arrival of chunks that contain a timestamp.
    """

    chunks_per_answer: int
    mark: str = MARK
    deadline: float = 0.0
    answers: int = 0
    chunks: int = 0
    reads: int = 0
    error: str = ""
    latencies: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """A connection that repeats a request until the deadline."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self._request, self._tally = request, tally
        self._transport: asyncio.Transport | None = None
        self._marks = 0
        self._tail = b""
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        self._marks, self._tail = 0, b""
        if self._transport is not None:
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._tail and not data.startswith(b"HTTP/1.1 200"):
            self._tally.error = data[:100].decode(errors="replace")
        if not self.started.done():
            self.started.set_result(None)
        self._tally.reads += 1
        self._marks += data.count(self._tally.mark.encode())
        for generated_ns in TIMESTAMP.findall(data):
            self._tally.latencies.append((time.monotonic_ns() - int(generated_ns)) / 1e9)
        self._tail = (self._tail + data[-len(END) :])[-len(END) :]
        if self._tail == END:
            self._complete()

    def _complete(self) -> None:
        tally = self._tally
        tally.answers += 1
        tally.chunks += self._marks
        if self._marks != tally.chunks_per_answer:
            tally.error = tally.error or f"an answer had {self._marks} chunks, not {tally.chunks_per_answer}"
        if tally.error or time.perf_counter() >= tally.deadline:
            self.finish()
        else:
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._tally.error = self._tally.error or f"connection lost ({error})"
            self.finish()

    def finish(self) -> None:
        for future in (self.started, self.done):
            if not future.done():
                future.set_result(None)


def request_bytes(wire_format: str, message: str = "Hello", **params: Any) -> bytes:
    """Return a request of a new user."""
    body = json.dumps({"user_input": message, "params": params}).encode()
    head = (
        f"POST /chat_stream HTTP/1.1\r\nHost: localhost\r\nAccept: {MEDIA_TYPES.get(wire_format, '*/*')}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def connected(server: BenchServer, clients: int, request: bytes, tally: Tally) -> AsyncIterator[list[Client]]:
    """Open ``clients`` connections for the block."""
    loop = asyncio.get_running_loop()
    connections: list[Client] = []
    transports: list[asyncio.Transport] = []
    try:
        for _ in range(clients):
            transport, client = await loop.create_connection(lambda: Client(request, tally), "127.0.0.1", server.port)
            connections.append(client)
            transports.append(transport)
        yield connections
    finally:
        for client, transport in zip(connections, transports, strict=True):
            client.finish()
            transport.abort()


def check(tally: Tally) -> None:
    """Raise RuntimeError if a client had an error."""
    if tally.error:
        raise RuntimeError(f"A server failed: {tally.error}.")
