"""Sending one request and recording its timing."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from aiochatstream.bench.protocols import LoadUser, Target
from aiochatstream.bench.response_parsers import InvalidAnswer, ProtocolMismatch, RequestRefused, ServerStats
from aiochatstream.terminal import one_line, os_error_reason

RequestKind = Literal["plain", "abort", "slow"]
RequestOutcome = Literal["completed", "refused", "failed", "aborted"]

REFUSAL_STATUSES = (503, 429)
UNKNOWN_ENDPOINT_STATUSES = (404, 405)
SLOW_READER_PAUSE = 0.1
"""Seconds that a slow reader waits after each chunk."""
SLOW_READER_BUFFER = 2048
"""Bytes of a slow reader's buffer, here and in the kernel. It is small so that the server notices the slow reader."""


@dataclass(frozen=True)
class Clock:
    """Source of time in seconds, replaceable in tests. ``cpu`` returns the CPU time of the process, all threads."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    cpu: Callable[[], float] = time.process_time


@dataclass(slots=True)
class RequestRecord:
    """Timing and outcome of one request. Times are clock readings in seconds.

    turn: 1 for the first message of a conversation.
    abort_after: number of texts after which an ``abort`` disconnects.
    lateness: seconds between the due time and the sending (open loop).
    arrivals: arrival time of each text.
    wire_bytes: size of the answer's body with its chunk framing, without headers.
    tokens: number of tokens of the answer; None while unknown.
    text: the answer, if it is needed after the request.
    """

    index: int
    user: int
    turn: int
    kind: RequestKind = "plain"
    abort_after: int = 0
    lateness: float = 0.0
    start: float = 0.0
    end: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    outcome: RequestOutcome = "failed"
    reason: str = ""
    status: int | None = None
    retry_after: float | None = None
    wire_bytes: int = 0
    stats: ServerStats = field(default_factory=ServerStats)
    tokens: int | None = None
    text: str = ""

    @property
    def e2e(self) -> float:
        """End-to-end latency: from just before the request is sent until the end of the answer's body."""
        return self.end - self.start

    @property
    def ttft(self) -> float | None:
        """Time to first token: until the first text arrived."""
        return self.arrivals[0] - self.start if self.arrivals else None

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first: (E2E - TTFT) / (tokens - 1)."""
        if self.ttft is None or self.tokens is None or self.tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies: seconds between successive texts."""
        return [later - earlier for earlier, later in pairwise(self.arrivals)]


class _ClientAbort(Exception):
    """An ``abort`` has read its share of the answer."""


async def send_request(target: Target, user: LoadUser, prompt: str, record: RequestRecord, clock: Clock) -> None:
    """Send ``prompt``, read the answer to its end, and fill ``record``, also if server or network fail."""
    record.start = clock.now()
    limit = target.plan.timeout
    try:
        async with asyncio.timeout(limit):
            await _exchange(target, user, prompt, record, clock)
        record.outcome = "completed"
    except _ClientAbort:
        record.outcome = "aborted"
    except RequestRefused as error:
        record.outcome, record.reason = "refused", str(error)
    except ProtocolMismatch as error:
        record.reason = f"{error} (does the server support --protocol {target.plan.protocol}?)"
    except InvalidAnswer as error:
        record.reason = str(error)
    except TimeoutError:
        record.reason = f"not complete within {limit:g} s"
    except aiohttp.ClientConnectorError as error:
        record.reason = f"cannot connect: {os_error_reason(error)}"
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionError) as error:
        phase = "during the answer" if record.status else "before the answer"
        record.reason = f"connection lost {phase} ({type(error).__name__})"
    except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
        record.reason = one_line(f"{type(error).__name__}: {error}")
    record.end = clock.now()
    if record.outcome == "completed":
        target.add_turn(user, prompt, record.text)


async def _exchange(target: Target, user: LoadUser, prompt: str, record: RequestRecord, clock: Clock) -> None:
    slow = record.kind == "slow"
    post = user.session.post(
        target.endpoint,
        json=target.body(user, prompt),
        allow_redirects=False,  # the load must not reach another server
        read_bufsize=SLOW_READER_BUFFER if slow else 2**16,
        headers={"Connection": "close"} if slow else None,  # a later request must not inherit the small buffer
    )
    async with post as response:
        record.status = response.status
        await _check_head(target, response, record)
        if slow:
            _shrink_receive_buffer(response)
        await _read(target, response, record, clock)


async def _read(target: Target, response: aiohttp.ClientResponse, record: RequestRecord, clock: Clock) -> None:
    parser = target.protocol.parser_class()
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    keep_text = not target.protocol.stateful or target.plan.tokenizer is not None
    chunk_bytes = 0
    async for data, chunk_end in response.content.iter_chunks():
        now = clock.now()
        chunk_bytes += len(data)
        if chunk_end and chunk_bytes:  # aiohttp reports the empty last chunk only sometimes: it is added below
            record.wire_bytes += chunk_bytes + len(f"{chunk_bytes:x}") + 4
            chunk_bytes = 0
        for text in parser.feed(data, chunk_end=chunk_end or not chunked):
            record.arrivals.append(now)
            if keep_text:
                record.text += text
            if len(record.arrivals) == record.abort_after:
                raise _ClientAbort
        if record.kind == "slow":
            await clock.sleep(SLOW_READER_PAUSE)
    record.wire_bytes += chunk_bytes + (len("0\r\n\r\n") if chunked else 0)
    parser.finish()
    record.stats = parser.stats


async def _check_head(target: Target, response: aiohttp.ClientResponse, record: RequestRecord) -> None:
    """Raise InvalidAnswer unless ``response`` is the head of an answer."""
    if response.status == 200:
        expected = target.protocol.parser_class.media_type
        if response.content_type == expected:
            return
        body = await _read_error(response)
        if body.code == "too_many_requests":  # chatstream refuses with status 200 by default
            raise RequestRefused(body.code)
        raise ProtocolMismatch(
            f"the answer is {response.content_type}, not {expected} ({one_line(body.sentence, 80) or 'empty'})"
        )
    body = await _read_error(response)
    if response.status in REFUSAL_STATUSES:
        record.retry_after = _seconds(response.headers.get("Retry-After"))
        raise RequestRefused(body.code or str(response.status))
    error = ProtocolMismatch if response.status in UNKNOWN_ENDPOINT_STATUSES else InvalidAnswer
    raise error(f"HTTP {response.status} {response.reason}: {body.sentence}".rstrip(": ."))


@dataclass(frozen=True)
class _ErrorBody:
    code: str
    sentence: str


async def _read_error(response: aiohttp.ClientResponse) -> _ErrorBody:
    """Parse an error body in the form of aiochatstream, chatstream or OpenAI's API; of others, use the text."""
    try:
        head = await response.content.readexactly(4096)
    except asyncio.IncompleteReadError as incomplete:
        head = incomplete.partial
    raw = head.decode(errors="replace")
    try:
        body = json.loads(raw)
        error = body["error"]
    except (ValueError, KeyError, TypeError):
        return _ErrorBody("", one_line(raw))
    if isinstance(error, dict):
        return _ErrorBody(str(error.get("code") or error.get("type") or ""), one_line(str(error.get("message", raw))))
    return _ErrorBody(str(error), one_line(str(body.get("detail", error))))


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


def _shrink_receive_buffer(response: aiohttp.ClientResponse) -> None:
    transport = response.connection and response.connection.transport
    connection = transport and transport.get_extra_info("socket")
    if connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_READER_BUFFER)
