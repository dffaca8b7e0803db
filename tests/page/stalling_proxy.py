"""A TCP proxy whose connections can stall without being closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class StallingProxy:
    """Forwards connections to ``port`` of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connections: list[asyncio.Event] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    def stall(self) -> None:
        """Stop forwarding on the open connections, without closing them."""
        for stalled in self._connections:
            stalled.set()

    def disconnect(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stalled = asyncio.Event()
        self._connections.append(stalled)
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.port)
        for source, target in ((reader, upstream_writer), (upstream_reader, writer)):
            task = asyncio.create_task(_forward(source, target, stalled))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        self.disconnect()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _forward(source: asyncio.StreamReader, target: asyncio.StreamWriter, stalled: asyncio.Event) -> None:
    try:
        with suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if stalled.is_set():
                    await asyncio.Event().wait()
                target.write(data)
                await target.drain()
            if stalled.is_set():
                await asyncio.Event().wait()
    finally:
        target.close()


@asynccontextmanager
async def stalling_proxy(port: int) -> AsyncIterator[StallingProxy]:
    proxy = StallingProxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
