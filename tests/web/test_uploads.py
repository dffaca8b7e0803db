"""Tests of the reception of request bodies: their limits, their encodings, and clients that stall or disconnect."""

from __future__ import annotations

import asyncio
import gzip
import logging

import pytest

from aiochatstream import ChatStream, GenerationParams, Limits
from aiochatstream.errors import TooManyRequests
from aiochatstream.web.uploads import Uploads
from tests.helpers import PATIENCE, ClientOf, MakeStepper, StartServer, echo, until
from tests.web.raw_requests import default_server, read_response, request_head, sending, stalled_request


@pytest.mark.parametrize("path", ["/chat_stream", "/import", "/set_feedback", "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("more", ["Content-Length: 1000\r\n", "Transfer-Encoding: chunked\r\n"])
async def test_a_body_that_arrives_too_late_is_a_408(start: StartServer, path: str, more: str) -> None:
    server = await start(ChatStream(engine=echo, limits=Limits(body_timeout=0.1)))
    async with sending(server, request_head(path, more) + b"3\r\n{  \r\n") as reader:
        status, body = await read_response(reader)
        assert status == 408
        assert b"request_timeout" in body
    assert len(server.chat_stream.uploads) == server.chat_stream.uploads.bytes == 0


async def test_above_the_total_the_oldest_body_is_refused_and_short_bodies_are_accepted(
    start: StartServer, client_of: ClientOf
) -> None:
    chat_stream = ChatStream(engine=echo)
    server = await start(chat_stream)
    chat_stream.uploads = uploads = Uploads(PATIENCE, 100_000)
    async with sending(server, stalled_request("/import", 60_000)) as first:
        await until(lambda: uploads.bytes == 59_999)
        async with sending(server, stalled_request("/import", 50_000)):
            assert (await read_response(first))[0] == TooManyRequests.status
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
    async with sending(server, stalled_request(path)) as reader:
        assert (await read_response(reader))[0] == TooManyRequests.status
    engine.allow()
    await running


async def test_a_disconnect_during_an_upload_is_not_logged(
    start: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start(ChatStream(engine=echo))
    async with sending(server, stalled_request()):
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
    async with default_server(ChatStream(engine=echo), handler_args={"auto_decompress": decompressing}) as server:
        more = f"Content-Encoding: gzip\r\nContent-Length: {len(data)}\r\nConnection: close\r\n"
        async with sending(server, request_head(more=more) + data) as reader:
            status, body = await read_response(reader)
            assert status in (400, 422)  # aiohttp ignores trailing data
            assert b'"error"' in body
            await reader.read()
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize("encoding", ["br", "zstd", "foo", "gzip, gzip", "Br"])
@pytest.mark.parametrize("path", ["/chat_stream", "/v1/chat/completions"])
async def test_an_unknown_encoding_is_a_415(encoding: str, path: str) -> None:
    async with default_server(ChatStream(engine=echo), handler_args={"auto_decompress": False}) as server:
        more = f"Content-Encoding: {encoding}\r\nContent-Length: 3\r\n"
        async with sending(server, request_head(path, more) + b"abc") as reader:
            status, body = await read_response(reader)
            assert status == 415
            assert b"Content-Encoding: must be gzip, deflate or absent" in body


@pytest.mark.parametrize("decompressing", [True, False])
async def test_a_body_whose_decompressed_size_exceeds_the_limit_is_a_413(decompressing: bool) -> None:
    data = gzip.compress(b" " * 20_000_000)
    async with default_server(ChatStream(engine=echo), handler_args={"auto_decompress": decompressing}) as server:
        more = f"Content-Encoding: gzip\r\nContent-Length: {len(data)}\r\n"
        async with sending(server, request_head(more=more) + data) as reader:
            assert (await read_response(reader))[0] == 413
