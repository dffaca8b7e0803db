"""Tests of the limits on bodies and responses, and of clients that stall or send invalid requests."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web

from aiochatstream import ChatStream, GenerationParams, Limits, MemoryStorage
from aiochatstream.errors import TooManyRequests
from aiochatstream.web.server_log import shorten_client_errors
from aiochatstream.web.uploads import Uploads
from tests.helpers import PATIENCE, ClientOf, MakeStepper, Server, StartServer, echo, post_bytes, until

HEAD = "POST {path} HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n{more}\r\n"


@asynccontextmanager
async def served(chat_stream: ChatStream, **arguments: Any) -> AsyncIterator[Server]:
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


def head(path: str = "/chat_stream", more: str = "") -> bytes:
    return HEAD.format(path=path, more=more).encode()


def stalled(path: str = "/chat_stream", size: int = 1000) -> bytes:
    """Return a request without its last byte."""
    return head(path, f"Content-Length: {size}\r\n") + b" " * (size - 1)


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(PATIENCE):
        status = int((await reader.readline()).split()[1])
        length = 0
        while (line := await reader.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, await reader.readexactly(length)


@pytest.mark.parametrize("path", ["/chat_stream", "/import", "/set_feedback", "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("more", ["Content-Length: 1000\r\n", "Transfer-Encoding: chunked\r\n"])
async def test_a_body_that_arrives_too_late_is_a_408(start: StartServer, path: str, more: str) -> None:
    server = await start(ChatStream(engine=echo, limits=Limits(body_timeout=0.1)))
    async with sending(server, head(path, more) + b"3\r\n{  \r\n") as reader:
        status, body = await answer(reader)
        assert status == 408
        assert b"request_timeout" in body
    assert len(server.chat_stream.uploads) == server.chat_stream.uploads.bytes == 0


async def test_above_the_total_the_oldest_body_is_refused_and_short_bodies_are_accepted(
    start: StartServer, client_of: ClientOf
) -> None:
    chat_stream = ChatStream(engine=echo)
    server = await start(chat_stream)
    chat_stream.uploads = uploads = Uploads(PATIENCE, 100_000)
    async with sending(server, stalled("/import", 60_000)) as first:
        await until(lambda: uploads.bytes == 59_999)
        async with sending(server, stalled("/import", 50_000)):
            assert (await answer(first))[0] == TooManyRequests.status
            await until(lambda: uploads.bytes == 49_999)
            assert (await client_of(server).say("hello"))["text"] == "hello "


@pytest.mark.parametrize("path", ["/chat_stream", "/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_no_body_is_read_while_the_queue_is_full(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, path: str
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=1, max_queue_size=0, params=GenerationParams(max_new_tokens=1)
        )
    )
    running = asyncio.create_task(client_of(server).say("hi"))
    await until(lambda: engine.calls)
    async with sending(server, stalled(path)) as reader:
        assert (await answer(reader))[0] == TooManyRequests.status
    engine.allow()
    await running


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
    async with served(chat_stream) as server:
        client = client_of(server)
        messages = [{"role": "user", "content": "x" * 400_000}, {"role": "assistant", "content": "y" * 400_000}]
        async with client.post("/import", messages=messages) as response:
            cookie = response.headers["Set-Cookie"].partition(";")[0]
        history = f"GET /history HTTP/1.1\r\nHost: [::1]\r\nCookie: {cookie}\r\n\r\n".encode()
        async with sending(server, history * 30), sending(server, stalled("/import", 60_000)) as reader:
            await until(lambda: len(chat_stream.active_requests) == 2 and chat_stream.uploads.bytes)
            refused = asyncio.create_task(answer(reader))
            async with asyncio.timeout(PATIENCE):
                await server.runner.cleanup()
            assert (await refused)[0] == 503


async def test_a_disconnect_during_an_upload_is_not_logged(
    start: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start(ChatStream(engine=echo))
    async with sending(server, stalled()):
        await until(lambda: server.chat_stream.uploads.bytes)
    await until(lambda: not server.chat_stream.active_requests)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize(
    "data",
    [b"rubbish", gzip.compress(b"{}" * 99)[:-9], gzip.compress(b"{}") + b"more"],
    ids=["rubbish", "truncated", "trailing data"],  # gzip's bytes contain the time
)
@pytest.mark.parametrize("decompressing", [True, False])
async def test_a_body_with_invalid_compression_is_not_logged(
    caplog: pytest.LogCaptureFixture, data: bytes, decompressing: bool
) -> None:
    async with served(ChatStream(engine=echo), handler_args={"auto_decompress": decompressing}) as server:
        more = f"Content-Encoding: gzip\r\nContent-Length: {len(data)}\r\nConnection: close\r\n"
        async with sending(server, head(more=more) + data) as reader:
            status, body = await answer(reader)
            assert status in (400, 422)  # aiohttp ignores trailing data
            assert b'"error"' in body
            await reader.read()
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize("encoding", ["br", "zstd", "foo", "gzip, gzip", "Br"])
@pytest.mark.parametrize("path", ["/chat_stream", "/v1/chat/completions"])
async def test_an_unknown_encoding_is_a_415(encoding: str, path: str) -> None:
    async with served(ChatStream(engine=echo), handler_args={"auto_decompress": False}) as server:
        more = f"Content-Encoding: {encoding}\r\nContent-Length: 3\r\n"
        async with sending(server, head(path, more) + b"abc") as reader:
            status, body = await answer(reader)
            assert status == 415
            assert b"Content-Encoding: must be gzip, deflate or absent" in body


@pytest.mark.parametrize("decompressing", [True, False])
async def test_a_body_whose_decompressed_size_exceeds_the_limit_is_a_413(decompressing: bool) -> None:
    data = gzip.compress(b" " * 20_000_000)
    async with served(ChatStream(engine=echo), handler_args={"auto_decompress": decompressing}) as server:
        more = f"Content-Encoding: gzip\r\nContent-Length: {len(data)}\r\n"
        async with sending(server, head(more=more) + data) as reader:
            assert (await answer(reader))[0] == 413


async def test_a_malformed_request_is_logged_in_one_line(start: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    server = await start(ChatStream(engine=echo))
    log = logging.getLogger("aiohttp.server")
    log.addFilter(shorten_client_errors)
    try:
        async with sending(server, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n") as reader:
            assert (await answer(reader))[0] == 400
    finally:
        log.removeFilter(shorten_client_errors)
    (record,) = (record for record in caplog.records if record.name == "aiohttp.server")
    assert record.exc_info is None
    line = record.getMessage()
    assert "\n" not in line
    assert len(line) < 300


async def test_an_error_of_one_watched_request_does_not_affect_the_others(
    start: StartServer, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1))
    disconnects = server.chat_stream.disconnects
    with disconnects.watch(object(), lambda: None):  # type: ignore[arg-type]
        await until(lambda: not len(disconnects))
        async with sending(server, post_bytes('{"user_input":"hi"}')):
            await until(lambda: engine.calls)
        await until(lambda: server.stopping)
        engine.allow()
        await until(lambda: server.idle)


@pytest.mark.parametrize("wire", ["", "X-ChatStream-Wire: cumulative\r\n", "X-ChatStream-Wire: cumulative-eos\r\n"])
async def test_clients_detect_truncated_answers_with_http_1_0_over_a_unix_socket(
    stepper: MakeStepper, tmp_path: Path, wire: str
) -> None:
    # a unix socket cannot be reset, so an answer is sent with its length or not at all
    engine = stepper()
    chat_stream = ChatStream(
        engine=engine, params=GenerationParams(max_new_tokens=2), limits=Limits(shutdown_timeout=0.05)
    )
    async with served(chat_stream) as server:
        await web.UnixSite(server.runner, tmp_path / "socket").start()

        async def ask() -> bytes:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "socket")
            writer.write(post_bytes('{"user_input":"hi"}', version="1.0", headers=wire))
            try:
                return await reader.read()
            finally:
                writer.transport.abort()

        engine.allow(2)
        whole = await ask()
        length = len(whole.partition(b"\r\n\r\n")[2])
        assert f"Content-Length: {length}\r\n".encode() in whole
        assert b"1 2 " in whole
        asking = asyncio.create_task(ask())
        engine.allow(1)
        await until(lambda: any(turn.text == "1 " for turn in chat_stream.running_turns))
        ending = asyncio.create_task(server.runner.cleanup())
        await until(lambda: server.stopping)
        engine.allow(1)
        assert b"200 OK" not in await asking
        await ending
