"""A server with only ``GET /v1/models``, whose response the test chooses, and pools that close after the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

from aiohttp import web

from aiochatstream.engines.upstream.pool import UpstreamPool
from aiochatstream.engines.upstream.upstream import Upstream


class ModelServer:
    """A server with one model.

    status: status of the next responses. probes: number of requests. silent: True leaves requests without a response.
    """

    def __init__(self, status: int = 200, port: int = 0) -> None:
        self.status, self.port = status, port
        self.probes = 0
        self.context_len = 100
        self.silent = False
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen at the port of before, at first at any free one."""
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.stop()

    async def _models(self, request: web.Request) -> web.Response:
        self.probes += 1
        self.headers.append(dict(request.headers))
        if self.silent:
            await asyncio.Event().wait()
        model = {"id": "fake", "object": "model", "owned_by": "vllm", "max_model_len": self.context_len}
        body = {"object": "list", "data": [model]}
        return web.json_response(body if self.status == 200 else {"error": {"message": "secret"}}, status=self.status)


@asynccontextmanager
async def open_pool(*sources: str | Upstream | ModelServer, **options: Any) -> AsyncIterator[UpstreamPool]:
    """Open a pool during the block."""
    urls = [source.url if isinstance(source, ModelServer) else source for source in sources]
    pool = UpstreamPool(urls, **options)
    try:
        await pool.open()
        yield pool
    finally:
        await pool.close()
