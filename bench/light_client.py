"""A client of raw bytes that costs so little that the servers are the limit."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from servers import MARK, Server

MEDIA_TYPES = {"text": "text/plain", "sse": "text/event-stream"}
CHATSTREAM = "chatstream"
"""The wire format of chatstream 0.3.0: a piece is the whole text so far and ``<::EOS::>``."""
STAMP = re.compile(rb"(\d{8,})" + MARK.encode())
END = b"\r\n0\r\n\r\n"
"""The last chunk. No header and no piece of ours looks like it."""


@dataclass
class Tally:
    """What all clients of a round have got. ``pieces`` is what each answer must have, ``mark`` stands once in each."""

    pieces: int
    mark: str = MARK
    deadline: float = 0.0
    answers: int = 0
    chunks: int = 0
    reads: int = 0
    wrong: str = ""
    latencies: list[float] = field(default_factory=list)
    """Seconds from where a piece was made to here, for pieces that tell."""


class Client(asyncio.Protocol):
    """One connection that asks again and again until the deadline. So light that the servers are the limit."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self._request, self._tally = request, tally
        self._transport: asyncio.Transport | None = None
        self._seen = 0
        self._tail = b""
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self) -> None:
        self._seen, self._tail = 0, b""
        if self._transport is not None:
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._tail and not data.startswith(b"HTTP/1.1 200"):
            self._tally.wrong = data[:100].decode(errors="replace")
        if not self.begun.done():
            self.begun.set_result(None)
        self._tally.reads += 1
        self._seen += data.count(self._tally.mark.encode())
        for made_ns in STAMP.findall(data):
            self._tally.latencies.append((time.monotonic_ns() - int(made_ns)) / 1e9)
        self._tail = (self._tail + data[-len(END) :])[-len(END) :]
        if self._tail == END:
            self._ended()

    def _ended(self) -> None:
        tally = self._tally
        tally.answers += 1
        tally.chunks += self._seen
        if self._seen != tally.pieces:
            tally.wrong = tally.wrong or f"an answer of {self._seen} pieces, not {tally.pieces}"
        if tally.wrong or time.perf_counter() >= tally.deadline:
            self.finish()
        else:
            self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._tally.wrong = self._tally.wrong or f"the connection broke ({error})"
            self.finish()

    def finish(self) -> None:
        for future in (self.begun, self.done):
            if not future.done():
                future.set_result(None)


def request_bytes(wire_format: str, message: str = "Hello", **params: Any) -> bytes:
    """A request of a user whom the server has not seen."""
    body = json.dumps({"user_input": message, "params": params}).encode()
    head = (
        f"POST /chat_stream HTTP/1.1\r\nHost: localhost\r\nAccept: {MEDIA_TYPES.get(wire_format, '*/*')}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def connected(server: Server, clients: int, request: bytes, tally: Tally) -> AsyncIterator[list[Client]]:
    """So many connections."""
    loop = asyncio.get_running_loop()
    made: list[Client] = []
    transports: list[asyncio.Transport] = []
    try:
        for _ in range(clients):
            transport, client = await loop.create_connection(lambda: Client(request, tally), "127.0.0.1", server.port)
            made.append(client)
            transports.append(transport)
        yield made
    finally:
        for client, transport in zip(made, transports, strict=True):
            client.finish()
            transport.abort()


def check(tally: Tally) -> None:
    if tally.wrong:
        raise RuntimeError(f"A server did not do its part: {tally.wrong}.")
