"""A TCP proxy whose connections can die without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class HeldProxy:
    """Forwards to ``port`` of this machine. After :meth:`hold` the present connections stay open and carry nothing."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connections: list[asyncio.Event] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    def hold(self) -> None:
        for held in self._connections:
            held.set()

    def cut(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held = asyncio.Event()
        self._connections.append(held)
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.create_task(_forward(source, target, held))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _forward(source: asyncio.StreamReader, target: asyncio.StreamWriter, held: asyncio.Event) -> None:
    try:
        with suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if held.is_set():
                    await asyncio.Event().wait()
                target.write(data)
                await target.drain()
            if held.is_set():
                await asyncio.Event().wait()
    finally:
        target.close()


@asynccontextmanager
async def held_proxy(port: int) -> AsyncIterator[HeldProxy]:
    """A proxy in front of ``port``."""
    proxy = HeldProxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
