"""A server whose answers a test scripts, and a clock that only the test advances."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from aiochatstream.bench.command import LoadTest
from aiochatstream.bench.load import LoadRun
from aiochatstream.bench.plan import Plan
from aiochatstream.bench.request import Clock
from tests.bench.events import delta, done
from tests.helpers import until


@dataclass
class VirtualTime:
    """A clock that stands still unless a test or a sleep advances it."""

    seconds: float = 1000.0
    cpu: float = 0.0
    reads: int = 0

    def now(self) -> float:
        self.reads += 1
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)  # other tasks that are due run first
        self.seconds += seconds

    @property
    def clock(self) -> Clock:
        return Clock(self.now, self.sleep, lambda: self.cpu)


@dataclass
class Exchange:
    """One request as the server sees it. ``number`` counts from 0, the load generator's probe."""

    number: int
    request: web.Request
    body: dict[str, Any]
    time: VirtualTime

    async def open(self, content_type: str = "text/event-stream", **headers: str) -> None:
        self.response = web.StreamResponse(headers=headers)
        self.response.content_type = content_type
        await self.response.prepare(self.request)

    async def send(self, data: str | bytes, *, after: float = 0.0) -> None:
        """Advance the clock by ``after`` seconds and send a chunk. Wait until the client, the only one, has read it."""
        self.time.seconds += after
        reads = self.time.reads
        await self.response.write(data.encode() if isinstance(data, str) else data)
        await until(lambda: self.time.reads > reads)

    def abort(self) -> None:
        assert self.request.transport is not None
        self.request.transport.abort()


Script = Callable[[Exchange], Awaitable[web.StreamResponse | None]]


@dataclass
class ScriptedServer:
    """A running server, and the requests that it received."""

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
        """Messages of the measured requests."""
        return [exchange.body["user_input"] for exchange in self.exchanges[1:]]


@asynccontextmanager
async def scripted(
    script: Script, path: str = "/chat_stream", *, models: Sequence[str] = ()
) -> AsyncIterator[ScriptedServer]:
    """Run a server that answers with ``script`` at ``path``, and lists ``models``."""

    async def list_models(request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [{"id": model} for model in models]})

    server = ScriptedServer(script)
    app = web.Application()
    app.router.add_post(path, server.handle)
    if models:
        app.router.add_get("/v1/models", list_models)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        server.site = web.TCPSite(runner, "127.0.0.1", 0)
        await server.site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()


def plan(url: str, **changes: Any) -> Plan:
    """Return a plan for one short request, with ``changes`` of its fields."""
    defaults: dict[str, Any] = {"extra_body": {}, "max_tokens": 8, "temperature": 0.0, "requests": 1, "timeout": 20.0}
    return Plan(url=url, **{**defaults, **changes})


async def measure(server: ScriptedServer, **changes: Any) -> LoadRun:
    """Run a load test against ``server`` in virtual time, and return its last run."""
    test = LoadTest(plan(server.url, **changes), server.time.clock, progress=False)
    await test.run()
    return test.runs[-1]


async def answer(exchange: Exchange, words: int = 2, tokens: int | None = None) -> web.StreamResponse:
    """Send a complete answer in one chunk."""
    await exchange.open()
    body = "".join(delta(f"{number} ") for number in range(words)) + done(words if tokens is None else tokens)
    await exchange.response.write(body.encode())
    return exchange.response
