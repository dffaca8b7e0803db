"""Tests of the selection of a format, and of heartbeats."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from aiochatstream import ChatStream, GenerationParams, Limits
from aiochatstream.web.streaming.formats import choose_format
from tests.helpers import ClientOf, MakeStepper, StartServer, post_bytes, until
from tests.web.raw_requests import default_server

pytestmark = pytest.mark.both_loops


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ([], "text"),
        (["*/*"], "text"),
        (["text/plain"], "text"),
        (["text/event-stream"], "sse"),
        (["application/json"], "json"),
        (["image/png"], "text"),
        (["application/json;q=0.5, text/event-stream"], "sse"),
        (["application/json, text/plain, */*"], "json"),
        (["image/png, */*;q=0.1"], "text"),
        (["text/event-stream;q=0, application/json;q=0.1"], "json"),
        (["text/event-stream; charset=utf-8"], "sse"),
        (["TEXT/EVENT-STREAM"], "sse"),
        (["application/json;q=rubbish"], "text"),
        (["application/json;q=nan, text/plain"], "text"),
        ([";;,,q=="], "text"),
        (["image/png", "application/json"], "json"),
    ],
)
def test_accept_selects_the_format(accept: list[str], chosen: str) -> None:
    assert choose_format(accept, "text") == chosen


@pytest.mark.parametrize("accept", [[], ["*/*"], ["image/png"]])
def test_the_servers_default_is_for_clients_without_a_preference(accept: list[str]) -> None:
    assert choose_format(accept, "sse") == "sse"
    assert choose_format(["text/plain"], "sse") == "text"


async def test_an_idle_event_stream_contains_heartbeats(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiochatstream.web.streaming.formats.HEARTBEAT_SECONDS", 0.01)
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=1)))
    async with client_of(server).post(accept="text/event-stream", user_input="hi") as response:
        data = b""
        while data.count(b": still here\n\n") < 3:
            data += await response.content.readany()
        engine.allow()
        data += await response.read()
    assert data.endswith(b"}\n\n")
    assert b"event: done" in data


@pytest.mark.parametrize("wire", ["", "X-ChatStream-Wire: cumulative\r\n", "X-ChatStream-Wire: cumulative-eos\r\n"])
async def test_clients_detect_truncated_answers_with_http_1_0_over_a_unix_socket(
    stepper: MakeStepper, tmp_path: Path, wire: str
) -> None:
    # a unix socket cannot be reset, so an answer is sent with its length or not at all
    engine = stepper()
    chat_stream = ChatStream(
        engine=engine, params=GenerationParams(max_new_tokens=2), limits=Limits(shutdown_timeout=0.05)
    )
    async with default_server(chat_stream) as server:
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
