"""A load client that keeps what it receives with its times, and compares every answer word for word afterwards.

Parsing waits until the load has ended, so that hundreds of streams cost this process little while it measures others.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

from common import ROOT

from aiochatstream.bench.metrics import Distribution
from aiochatstream.sse import EventParser

sys.path.append(str(ROOT))  # the fake upstream, and so the text of its answers, belongs to the tests

from tests.fake_answers import MARK, answer_text

Wire = Literal["chat", "v1"]
"""Protocol of requests: /chat_stream with events, or /v1/chat/completions."""

OUTCOMES = ("whole", "wrong", "lost", "refused", "hung")
END = b"\r\n0\r\n\r\n"
FIRST_TEXT = (MARK.encode(), json.dumps(MARK)[1:-1].encode())
"""Bytes of the first character of every answer: as UTF-8, and escaped."""
REFUSED = (429, 503)


class Answer(NamedTuple):
    """Result of a request, one of OUTCOMES, with the text that arrived and the reason of a failure.

    usage: token counts that the server reported.
    """

    outcome: str
    text: str
    reason: str
    usage: dict[str, Any]


@dataclass
class Exchange:
    """A request, and what arrived for it: times of ``time.monotonic()`` and bytes."""

    wire: Wire
    message: str
    sent: float
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    complete: bool = False
    hung: bool = False

    @property
    def ttft_s(self) -> float | None:
        """Seconds until the first text; None without text."""
        for received, data in self.reads:
            if any(mark in data for mark in FIRST_TEXT):
                return received - self.sent
        return None

    @property
    def took_s(self) -> float:
        """Seconds until the end of the response, or until the last byte."""
        return self.reads[-1][0] - self.sent if self.reads else 0.0

    @property
    def gaps(self) -> list[float]:
        """Seconds between reads with data, from the first text on. Heartbeats are no data."""
        first = self.ttft_s
        if first is None:
            return []
        times = [received for received, data in self.reads if b"data:" in data and received >= self.sent + first]
        return [later - earlier for earlier, later in pairwise(times)]

    def answer(self, words: int) -> Answer:
        """Return the result, if the whole answer has ``words`` words."""
        status, body = split_response(b"".join(data for _, data in self.reads))
        if status in REFUSED:
            return Answer("refused", "", f"HTTP {status}", {})
        if status != 200:
            return Answer("hung" if self.hung else "lost", "", f"HTTP {status}" if status else "no response", {})
        text, reason, usage = READERS[self.wire](body)
        if reason != "stop" or not self.complete:
            return Answer("hung" if self.hung else "lost", text, reason or "cut off", usage)
        expected = answer_text([{"role": "user", "content": self.message}], words)
        return Answer("whole" if text == expected else "wrong", text, "", usage)


def split_response(data: bytes) -> tuple[int, bytes]:
    """Return the status and the body of a response; status 0 without a head."""
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 "):
        return 0, b""
    if b"transfer-encoding: chunked" not in head.lower():
        return int(head[9:12]), body
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        parts.append(rest[:length])
        body = rest[length + 2 :] if length else b""
    return int(head[9:12]), b"".join(parts)


def read_chat(body: bytes) -> tuple[str, str, dict[str, Any]]:
    """Return text, finish reason (or the code of the error) and usage of /chat_stream's events."""
    text, reason = "", ""
    usage: dict[str, Any] = {}
    for name, value in EventParser().feed(body):
        data = json.loads(value)
        if name == "delta":
            text += data["text"]
        elif name == "done":
            reason, usage = data["finish_reason"], data["usage"]
        elif name == "error":
            reason = data["error"]["error"]
    return text, reason, usage


def read_v1(body: bytes) -> tuple[str, str, dict[str, Any]]:
    """Return text, finish reason (or the code of the error) and usage of a stream of /v1/chat/completions."""
    text, reason, ended = "", "", False
    usage: dict[str, Any] = {}
    for _, data in EventParser().feed(body):
        if data == "[DONE]":
            ended = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            return text, str(chunk["error"].get("code") or "error"), usage
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            reason = choice.get("finish_reason") or reason
    return text, reason if ended else "no [DONE]", usage


READERS: dict[Wire, Callable[[bytes], tuple[str, str, dict[str, Any]]]] = {"chat": read_chat, "v1": read_v1}


def request_bytes(wire: Wire, message: str, model: str) -> bytes:
    """Return a request of a new user."""
    body: dict[str, Any]
    if wire == "chat":
        path, body = "/chat_stream", {"user_input": message}
    else:
        path = "/v1/chat/completions"
        body = {"model": model, "messages": [{"role": "user", "content": message}], "stream": True}
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\nAuthorization: Bearer sk-bench\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class StreamConnection(asyncio.Protocol):
    """A connection that sends one request at a time."""

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._tail = b""
        self._left: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def send(self, exchange: Exchange, request: bytes, patience: float) -> None:
        """Send a request; wait for the end of its response or connection, or for ``patience`` seconds of silence."""
        loop = asyncio.get_running_loop()
        self._exchange, self._tail, self._left = exchange, b"", None
        self._done = loop.create_future()
        if self._transport is not None:
            self._transport.write(request)
        left = patience
        while left > 0 and not self._done.done():
            await asyncio.wait([self._done], timeout=left)
            left = patience - (time.monotonic() - (exchange.reads[-1][0] if exchange.reads else exchange.sent))
        if not self._done.done():
            exchange.hung = True
            self.close()

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        exchange.reads.append((time.monotonic(), data))
        if len(exchange.reads) == 1:
            head, _, body = data.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            self._left = int(lengths[0].partition(b":")[2]) - len(body) if lengths else None
        elif self._left is not None:
            self._left -= len(data)
        self._tail = (self._tail + data[-len(END) :])[-len(END) :]
        if self._left == 0 or (self._left is None and self._tail == END):
            exchange.complete = True
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


@dataclass
class Load:
    """A load of clients on a server at a port.

    clients: number of them. Each repeats: send a new message in a conversation of its own, and read the whole answer.
    seconds: time after which no client sends another request; None: each sends one.
    spread_s: seconds between the first request of the first client and of the last client.
    patience_s: seconds of silence after which a request counts as hung.
    pause_s: seconds until a client whose request failed sends another one.
    """

    port: int
    wire: Wire
    clients: int
    words: int
    seconds: float | None = None
    spread_s: float = 0.0
    patience_s: float = 60.0
    pause_s: float = 0.05
    model: str = "fake"
    name: str = "load"
    exchanges: list[Exchange] = field(default_factory=list)

    async def run(self) -> None:
        """Send the load, and wait for its end."""
        self._deadline = time.monotonic() + (self.seconds or 0.0)
        await asyncio.gather(*(self._repeat(number) for number in range(self.clients)))

    def end(self) -> None:
        """Let no client send another request."""
        self._deadline = 0.0

    async def _repeat(self, number: int) -> None:
        await asyncio.sleep(self.spread_s * number / self.clients)
        connection: StreamConnection | None = None
        turn = 0
        try:
            while turn == 0 or time.monotonic() < self._deadline:
                message = f"{self.name} {number} {turn}"
                turn += 1
                exchange = Exchange(self.wire, message, time.monotonic())
                self.exchanges.append(exchange)
                if connection is None or connection.closed:
                    try:
                        connection = await connect(self.port)
                    except OSError:
                        await asyncio.sleep(self.pause_s)
                        continue
                await connection.send(exchange, request_bytes(self.wire, message, self.model), self.patience_s)
                if exchange.ttft_s is None:
                    await asyncio.sleep(self.pause_s)
        finally:
            if connection is not None:
                connection.close()

    def result(self) -> LoadResult:
        """Return the figures of all requests."""
        answers = [exchange.answer(self.words) for exchange in self.exchanges]
        return LoadResult(self.exchanges, answers)


async def connect(port: int) -> StreamConnection:
    _, connection = await asyncio.get_running_loop().create_connection(StreamConnection, "127.0.0.1", port)
    return connection


@dataclass
class LoadResult:
    """Figures of a load. Times are seconds."""

    exchanges: Sequence[Exchange]
    answers: Sequence[Answer]

    def count(self, outcome: str) -> int:
        return sum(answer.outcome == outcome for answer in self.answers)

    @property
    def outcomes(self) -> dict[str, int]:
        return {outcome: self.count(outcome) for outcome in OUTCOMES}

    @property
    def tokens(self) -> int:
        """Number of words of all answers, which are its tokens."""
        return sum(answer.text.count(" ") + 1 for answer in self.answers if answer.text)

    @property
    def reasons(self) -> list[str]:
        return sorted({answer.reason for answer in self.answers if answer.reason})

    @property
    def ttft_s(self) -> Distribution | None:
        times = [exchange.ttft_s for exchange in self.exchanges]
        return Distribution.of([time_ for time_ in times if time_ is not None])

    @property
    def longest_gap_s(self) -> float:
        return max((gap for exchange in self.exchanges for gap in exchange.gaps), default=0.0)

    @property
    def took_s(self) -> float:
        """Seconds from the first request to the last byte."""
        ends = [exchange.sent + exchange.took_s for exchange in self.exchanges]
        return max(ends) - min(exchange.sent for exchange in self.exchanges)
