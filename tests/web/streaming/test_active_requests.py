"""Tests of the time limits for clients that do not receive their responses."""

from __future__ import annotations

import asyncio

import pytest

from aiochatstream import ChatStream, Limits
from tests.helpers import PATIENCE, ClientOf, StartServer, echo, until
from tests.web.raw_requests import default_server, read_response, sending, stalled_request


async def test_a_client_that_receives_nothing_of_a_response_is_disconnected(
    start: StartServer, client_of: ClientOf
) -> None:
    chat_stream = ChatStream(engine=echo, limits=Limits(write_timeout=0.1))
    server = await start(chat_stream)
    client = client_of(server)
    messages = [{"role": "user", "content": "x" * 400_000}, {"role": "assistant", "content": "y" * 400_000}]
    async with client.post("/import", messages=messages) as response:
        cookie = response.headers["Set-Cookie"].partition(";")[0]
    request = f"GET /history HTTP/1.1\r\nHost: [::1]\r\nCookie: {cookie}\r\n\r\n".encode()
    async with sending(server, request * 30) as reader:
        await until(lambda: chat_stream.active_requests)
        await until(lambda: not chat_stream.active_requests)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(30 * 800_000)
    assert len((await client.history())[1]["content"]) == 400_000


async def test_stalled_clients_do_not_delay_a_shutdown(client_of: ClientOf) -> None:
    # aiohttp itself waits for 60 seconds, twice
    chat_stream = ChatStream(engine=echo)
    async with default_server(chat_stream) as server:
        client = client_of(server)
        messages = [{"role": "user", "content": "x" * 400_000}, {"role": "assistant", "content": "y" * 400_000}]
        async with client.post("/import", messages=messages) as response:
            cookie = response.headers["Set-Cookie"].partition(";")[0]
        history = f"GET /history HTTP/1.1\r\nHost: [::1]\r\nCookie: {cookie}\r\n\r\n".encode()
        async with sending(server, history * 30), sending(server, stalled_request("/import", 60_000)) as reader:
            await until(lambda: len(chat_stream.active_requests) == 2 and chat_stream.uploads.bytes)
            refused = asyncio.create_task(read_response(reader))
            async with asyncio.timeout(PATIENCE):
                await server.runner.cleanup()
            assert (await refused)[0] == 503
