"""Requests as raw bytes, for clients that stall, disconnect or send invalid data."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp_session
from aiohttp import web

from aiochatstream import ChatStream, MemoryStorage
from tests.helpers import PATIENCE, Server

HEAD = "POST {path} HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n{more}\r\n"


@asynccontextmanager
async def default_server(chat_stream: ChatStream, **arguments: Any) -> AsyncIterator[Server]:
    """Run a server whose application and runner have aiohttp's defaults."""
    app = web.Application(**arguments)
    aiohttp_session.setup(app, MemoryStorage())
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    chat_stream.setup_openai(app)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await chat_stream.wait_ready()
        yield Server(chat_stream, runner, f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


@asynccontextmanager
async def sending(server: Server, data: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """Send ``data`` and nothing else. The client's receive buffer is small."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
    writer.write(data)
    try:
        yield reader
    finally:
        writer.transport.abort()


def request_head(path: str = "/chat_stream", more: str = "") -> bytes:
    return HEAD.format(path=path, more=more).encode()


def stalled_request(path: str = "/chat_stream", size: int = 1000) -> bytes:
    """Return a request without its last byte."""
    return request_head(path, f"Content-Length: {size}\r\n") + b" " * (size - 1)


async def read_response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return the status and the body of a response."""
    async with asyncio.timeout(PATIENCE):
        status = int((await reader.readline()).split()[1])
        length = 0
        while (line := await reader.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, await reader.readexactly(length)
