"""One request, measured."""

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

from aiochatstream.bench.protocols import Target, User
from aiochatstream.bench.response_parsers import BadAnswer, Refused, Told, WrongProtocol
from aiochatstream.terminal import one_line, os_error_reason

Kind = Literal["plain", "abort", "slow"]
Outcome = Literal["completed", "refused", "failed", "aborted"]

REFUSALS = (503, 429)
NOT_HERE = (404, 405)
SLOW_PAUSE = 0.1
"""Seconds that a slow reader rests after each chunk."""
SLOW_BUFFER = 2048
"""Bytes of buffer that a slow reader asks for, here and in the kernel, so that the server feels it."""


@dataclass(frozen=True)
class Clock:
    """Time in seconds, to be replaced in tests. ``cpu`` is the process's CPU time, all threads."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    cpu: Callable[[], float] = time.process_time


@dataclass(slots=True)
class Record:
    """What happened to one request. Times are clock readings in seconds.

    turn: 1 for the first message of a conversation.
    abort_after: an ``abort`` hangs up after so many chunks of text.
    late: how long after its due time it was sent (open loop).
    stamps: when each piece of text arrived.
    wire_bytes: the answer's body with its chunk framing, without headers.
    tokens: of the answer; None while nobody knows.
    text: the answer, where it is needed after the request.
    """

    index: int
    user: int
    turn: int
    kind: Kind = "plain"
    abort_after: int = 0
    late: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    stamps: list[float] = field(default_factory=list)
    outcome: Outcome = "failed"
    reason: str = ""
    status: int | None = None
    retry_after: float | None = None
    wire_bytes: int = 0
    told: Told = field(default_factory=Told)
    tokens: int | None = None
    text: str = ""

    @property
    def e2e(self) -> float:
        """From before the request is sent until the answer's body has ended."""
        return self.ended - self.started

    @property
    def ttft(self) -> float | None:
        """Time to first token: until the first text arrived."""
        return self.stamps[0] - self.started if self.stamps else None

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first: (E2E - TTFT) / (n - 1)."""
        if self.ttft is None or self.tokens is None or self.tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies: between the arrivals of one piece of text and the next."""
        return [later - earlier for earlier, later in pairwise(self.stamps)]


class _HungUp(Exception):
    """An ``abort`` has read enough."""


async def ask(target: Target, user: User, prompt: str, record: Record, clock: Clock) -> None:
    """Say ``prompt``, read the answer to its end, and write into ``record`` what happened. Never raises an error
    of the server's or the network's."""
    record.started = clock.now()
    limit = target.plan.timeout
    try:
        async with asyncio.timeout(limit):
            await _exchange(target, user, prompt, record, clock)
        record.outcome = "completed"
    except _HungUp:
        record.outcome = "aborted"
    except Refused as refused:
        record.outcome, record.reason = "refused", str(refused)
    except WrongProtocol as error:
        record.reason = f"{error} (is it a server for --protocol {target.plan.protocol}?)"
    except BadAnswer as error:
        record.reason = str(error)
    except TimeoutError:
        record.reason = f"no end within {limit:g} s"
    except aiohttp.ClientConnectorError as error:
        record.reason = f"cannot connect: {os_error_reason(error)}"
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionError) as error:
        where = "within the answer" if record.status else "before the answer"
        record.reason = f"the connection broke {where} ({type(error).__name__})"
    except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
        record.reason = one_line(f"{type(error).__name__}: {error}")
    record.ended = clock.now()
    if record.outcome == "completed":
        target.learn(user, prompt, record.text)


async def _exchange(target: Target, user: User, prompt: str, record: Record, clock: Clock) -> None:
    slow = record.kind == "slow"
    post = user.session.post(
        target.endpoint,
        json=target.body(user, prompt),
        allow_redirects=False,  # only the server that was named is put under load
        read_bufsize=SLOW_BUFFER if slow else 2**16,
        headers={"Connection": "close"} if slow else None,  # no later request gets its small buffer
    )
    async with post as response:
        record.status = response.status
        await _check_head(target, response, record)
        if slow:
            _shrink_receive_buffer(response)
        await _read(target, response, record, clock)


async def _read(target: Target, response: aiohttp.ClientResponse, record: Record, clock: Clock) -> None:
    reader = target.protocol.reader()
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    keep_text = not target.protocol.keeps_history or target.plan.tokenizer is not None
    chunk_bytes = 0
    async for data, ends in response.content.iter_chunks():
        now = clock.now()
        chunk_bytes += len(data)
        if ends and chunk_bytes:  # the empty last chunk is told only sometimes: it is added below
            record.wire_bytes += chunk_bytes + len(f"{chunk_bytes:x}") + 4
            chunk_bytes = 0
        for text in reader.feed(data, chunk_ends=ends or not chunked):
            record.stamps.append(now)
            if keep_text:
                record.text += text
            if len(record.stamps) == record.abort_after:
                raise _HungUp
        if record.kind == "slow":
            await clock.sleep(SLOW_PAUSE)
    record.wire_bytes += chunk_bytes + (len("0\r\n\r\n") if chunked else 0)
    reader.finish()
    record.told = reader.told


async def _check_head(target: Target, response: aiohttp.ClientResponse, record: Record) -> None:
    """Raise BadAnswer unless this is the beginning of an answer."""
    if response.status == 200:
        expected = target.protocol.reader.media_type
        if response.content_type == expected:
            return
        body = await _read_error(response)
        if body.code == "too_many_requests":  # chatstream's default is to refuse with status 200
            raise Refused(body.code)
        raise WrongProtocol(
            f"the answer is {response.content_type}, not {expected} ({one_line(body.sentence, 80) or 'empty'})"
        )
    body = await _read_error(response)
    if response.status in REFUSALS:
        record.retry_after = _seconds(response.headers.get("Retry-After"))
        raise Refused(body.code or str(response.status))
    error = WrongProtocol if response.status in NOT_HERE else BadAnswer
    raise error(f"HTTP {response.status} {response.reason}: {body.sentence}".rstrip(": ."))


@dataclass(frozen=True)
class _ErrorBody:
    code: str
    sentence: str


async def _read_error(response: aiohttp.ClientResponse) -> _ErrorBody:
    """What an error says: as we, chatstream and OpenAI's API put it, or whatever text there is."""
    try:
        head = await response.content.readexactly(4096)
    except asyncio.IncompleteReadError as ended:
        head = ended.partial
    raw = head.decode(errors="replace")
    try:
        told = json.loads(raw)
        error = told["error"]
    except (ValueError, KeyError, TypeError):
        return _ErrorBody("", one_line(raw))
    if isinstance(error, dict):
        return _ErrorBody(str(error.get("code") or error.get("type") or ""), one_line(str(error.get("message", raw))))
    return _ErrorBody(str(error), one_line(str(told.get("detail", error))))


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
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
