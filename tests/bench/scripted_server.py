"""A server that does what the test says, and a clock that only the test advances."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from aiochatstream.bench.command import Bench
from aiochatstream.bench.load import Load
from aiochatstream.bench.plan import Plan
from aiochatstream.bench.request import Clock
from tests.helpers import until


@dataclass
class VirtualTime:
    """Stands still until it is told. Sleeping takes no time but the virtual one."""

    seconds: float = 1000.0
    cpu: float = 0.0
    reads: int = 0

    def now(self) -> float:
        self.reads += 1
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)  # what is due now comes first
        self.seconds += seconds

    @property
    def clock(self) -> Clock:
        return Clock(self.now, self.sleep, lambda: self.cpu)


@dataclass
class Exchange:
    """The server's side of one request. ``number`` counts from 0; the load generator's probe is number 0."""

    number: int
    request: web.Request
    body: dict[str, Any]
    time: VirtualTime

    async def open(self, content_type: str = "text/event-stream", **headers: str) -> None:
        self.response = web.StreamResponse(headers=headers)
        self.response.content_type = content_type
        await self.response.prepare(self.request)

    async def send(self, data: str | bytes, *, after: float = 0.0) -> None:
        """Let ``after`` seconds pass and send a chunk. For one client at a time: waits until it has taken the time."""
        self.time.seconds += after
        reads = self.time.reads
        await self.response.write(data.encode() if isinstance(data, str) else data)
        await until(lambda: self.time.reads > reads)

    def die(self) -> None:
        assert self.request.transport is not None
        self.request.transport.abort()


Script = Callable[[Exchange], Awaitable[web.StreamResponse | None]]


@dataclass
class Scripted:
    """A running scripted server, and what it was asked."""

    script: Script
    time: VirtualTime = field(default_factory=VirtualTime)
    exchanges: list[Exchange] = field(default_factory=list)
    url: str = ""
    site: web.TCPSite = field(init=False)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        exchange = Exchange(len(self.exchanges), request, await request.json(), self.time)
        self.exchanges.append(exchange)
        return await self.script(exchange) or exchange.response

    @property
    def prompts(self) -> list[str]:
        """What was said in the measured requests."""
        return [exchange.body["user_input"] for exchange in self.exchanges[1:]]


@asynccontextmanager
async def scripted(
    script: Script, path: str = "/chat_stream", *, models: Sequence[str] = ()
) -> AsyncIterator[Scripted]:
    async def name_models(request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [{"id": model} for model in models]})

    server = Scripted(script)
    app = web.Application()
    app.router.add_post(path, server.handle)
    if models:
        app.router.add_get("/v1/models", name_models)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        server.site = web.TCPSite(runner, "127.0.0.1", 0)
        await server.site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()


def plan(url: str, **values: Any) -> Plan:
    defaults: dict[str, Any] = {"extra_body": {}, "max_tokens": 8, "temperature": 0.0, "requests": 1, "timeout": 20.0}
    return Plan(url=url, **{**defaults, **values})


async def measure(server: Scripted, **values: Any) -> Load:
    """Run a load test against ``server`` in virtual time; return its last run."""
    bench = Bench(plan(server.url, **values), server.time.clock, progress=False)
    await bench.run()
    return bench.loads[-1]


def event(name: str, **data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def delta(text: str) -> str:
    return event("delta", text=text)


def done(tokens: int, queue_s: float = 0.0) -> str:
    usage = {"prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": tokens}
    return event("done", finish_reason="stop", usage=usage, timing={"queue_s": queue_s, "ttft_s": 0, "total_s": 0})


async def answer(exchange: Exchange, words: int = 2, tokens: int | None = None) -> None:
    """A whole answer in one chunk, at once."""
    await exchange.open()
    body = "".join(delta(f"{number} ") for number in range(words)) + done(words if tokens is None else tokens)
    await exchange.response.write(body.encode())
