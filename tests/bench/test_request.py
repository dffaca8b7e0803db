"""One request over a real socket, in virtual time: every figure is computed by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from aiochatstream.bench.command import Bench
from aiochatstream.bench.metrics import summarize
from tests.bench.scripted_server import Exchange, Scripted, answer, delta, done, measure, plan, scripted


async def sse(exchange: Exchange) -> None:
    """2 s to the headers, 1 s to the first text, gaps of 0.25 and 0.75 s, 0.5 s to the end: E2E 4.5 s."""
    exchange.time.seconds += 2.0
    await exchange.open()
    await exchange.send(delta("a"), after=1.0)
    await exchange.send(delta("b"), after=0.25)
    await exchange.send(delta("c"), after=0.75)
    await exchange.send(done(7, queue_s=1.5), after=0.5)


async def text(exchange: Exchange) -> None:
    exchange.time.seconds += 2.0
    await exchange.open("text/plain")
    await exchange.send("a", after=1.0)
    await exchange.send("b", after=0.25)
    await exchange.send("c", after=0.75)
    exchange.time.seconds += 0.5


async def chatstream(exchange: Exchange) -> None:
    exchange.time.seconds += 2.0
    await exchange.open("text/plain")
    await exchange.send("a<::EOS::>", after=1.0)
    await exchange.send("ab<::EOS::>", after=0.25)
    await exchange.send("abc<::EOS::>", after=0.75)
    exchange.time.seconds += 0.5


async def openai(exchange: Exchange) -> None:
    def chunk(choices: list[dict[str, Any]], **extra: Any) -> str:
        return f"data: {json.dumps({'choices': choices, **extra})}\n\n"

    exchange.time.seconds += 2.0
    await exchange.open()
    await exchange.send(chunk([{"delta": {"role": "assistant", "content": ""}}]), after=0.5)
    await exchange.send(chunk([{"delta": {"content": "a"}}]), after=0.5)
    await exchange.send(chunk([{"delta": {"content": "b"}}]), after=0.25)
    await exchange.send(chunk([{"delta": {"content": "c"}}]), after=0.75)
    await exchange.send(chunk([{"delta": {}, "finish_reason": "length"}]))
    await exchange.send(chunk([], usage={"completion_tokens": 7, "prompt_tokens": 10}) + "data: [DONE]\n\n", after=0.5)


@pytest.mark.parametrize(
    ("protocol", "script", "path", "tokens", "values"),
    [
        ("sse", sse, "/chat_stream", 7, {}),
        ("text", text, "/chat_stream", 3, {}),
        ("openai", openai, "/v1/chat/completions", 7, {"model": "m"}),
        ("chatstream", chatstream, "/chat_stream", 3, {"max_tokens": None, "temperature": None}),
    ],
)
async def test_each_protocol_gives_the_times_that_passed(
    protocol: str, script: Any, path: str, tokens: int, values: dict[str, Any]
) -> None:
    async with scripted(script, path) as server:
        load = await measure(server, protocol=protocol, **values)
    [record] = load.records
    assert record.outcome == "completed", record.reason
    assert record.ttft == 3.0
    assert record.gaps == [0.25, 0.75]
    assert record.e2e == 4.5
    assert record.tokens == tokens
    assert record.tpot == 1.5 / (tokens - 1)
    summary = summarize(load)
    assert summary.seconds == 4.5
    assert summary.tokens_per_s == tokens / 4.5
    assert summary.token_source == ("server" if tokens == 7 else "pieces")
    assert (summary.queue_s.p50 if summary.queue_s else None) == (1.5 if protocol == "sse" else None)


async def test_the_wire_is_counted_with_its_chunk_framing() -> None:
    async with scripted(text) as server:
        load = await measure(server, protocol="text")
    assert load.records[0].wire_bytes == 3 * len("1\r\na\r\n") + len("0\r\n\r\n")
    assert summarize(load).bytes_per_token == 23 / 3


@asynccontextmanager
async def raw_server(reads: list[bytes], content_type: str) -> AsyncIterator[Scripted]:
    """Writes the answer to the socket in just these pieces, each one read by the client before the next is sent."""
    server, closed = Scripted(answer), asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: " + content_type.encode() + b"\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\n"
        )
        for data in reads:
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0.002)
        writer.close()
        await writer.wait_closed()
        closed.release()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        for _ in range(2):  # the probe and the measured request
            await closed.acquire()
        listener.close()
        await listener.wait_closed()


def http_chunk(text: str) -> bytes:
    return f"{len(text.encode()):x}\r\n{text}\r\n".encode()


@pytest.mark.parametrize("cut", ["merged", "as sent", "split"])
@pytest.mark.parametrize("protocol", ["sse", "text", "chatstream"])
async def test_merged_and_split_tcp_chunks_do_not_change_counts(protocol: str, cut: str) -> None:
    texts, values = (
        ["あいう", "some words ", "c", "d"],
        {"max_tokens": None, "temperature": None} if protocol == "chatstream" else {},
    )
    chunks = {
        "sse": [*map(delta, texts), done(4)],
        "text": texts,
        "chatstream": ["".join(texts[: count + 1]) + "<::EOS::>" for count in range(4)],
    }[protocol]
    body = [*map(http_chunk, chunks), b"0\r\n\r\n"]
    whole = b"".join(body)
    reads = {"merged": [whole], "as sent": body, "split": [whole[at : at + 5] for at in range(0, len(whole), 5)]}[cut]
    async with raw_server(reads, "text/event-stream" if protocol == "sse" else "text/plain") as server:
        load = await measure(server, protocol=protocol, **values)
    [record] = load.records
    assert (record.outcome, record.reason) == ("completed", "")
    assert len(record.stamps) == record.tokens == 4
    assert record.wire_bytes == len(whole)


@pytest.mark.parametrize("nonsense", [b"zz\r\nhello\r\n", b"5\r\nhel", b"-1\r\n", b"5\r\nhello world\r\n"])
async def test_a_body_that_is_no_http_fails(nonsense: bytes) -> None:
    async with raw_server([nonsense], "text/plain") as server:
        bench = Bench(plan(server.url, protocol="text"), server.time.clock, progress=False)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"did not answer the first request: .+"):
                await bench.run()


async def test_a_server_that_dies_midway_gives_failures() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.number == 0:
            return await answer(exchange)
        await exchange.open()
        await exchange.send(delta("half an "))
        exchange.die()
        return None

    async with scripted(script) as server:
        load = await measure(server, requests=3)
    assert [record.outcome for record in load.records] == ["failed"] * 3
    assert "broke within the answer" in load.records[0].reason
    assert summarize(load).ttft_s is None


async def test_a_server_that_is_gone_gives_failures() -> None:
    async def script(exchange: Exchange) -> None:
        await server.site.stop()
        await exchange.open(Connection="close")
        await exchange.response.write((delta("a") + done(1)).encode())

    async with scripted(script) as server:
        load = await measure(server, requests=2)
    assert [record.reason for record in load.records] == ["cannot connect: Connection refused"] * 2


async def test_an_answer_that_never_ends_fails_by_the_time_limit() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.number == 0:
            return await answer(exchange)
        await exchange.open()
        await exchange.send(delta("half an "))
        await asyncio.Event().wait()
        return None

    async with scripted(script) as server:
        load = await measure(server, timeout=0.3)
    assert load.records[0].outcome == "failed"
    assert load.records[0].reason == "no end within 0.3 s"


@pytest.mark.parametrize("status", [503, 429])
async def test_refusals_and_the_time_they_took(status: int) -> None:
    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 0:
            return await answer(exchange)
        exchange.time.seconds += 0.125
        body = {"error": "too_many_requests", "detail": "The queue is full."}
        return web.json_response(body, status=status, headers={"Retry-After": "0"})

    async with scripted(script) as server:
        load = await measure(server, requests=2)
    summary = summarize(load)
    assert (summary.refused, summary.failed, summary.completed) == (2, 0, 0)
    assert summary.refused_s is not None
    assert summary.refused_s.mean == summary.refused_s.p99 == 0.125
    assert summary.reasons == {"too_many_requests": 2}


async def test_chatstreams_refusal_with_status_200_is_a_refusal() -> None:
    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 0:
            return await chatstream(exchange)
        return web.json_response({"error": "too_many_requests"})

    async with scripted(script) as server:
        load = await measure(server, protocol="chatstream", max_tokens=None, temperature=None)
    assert load.records[0].outcome == "refused"


async def test_a_redirect_is_not_followed() -> None:
    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 0:
            return await answer(exchange)
        raise web.HTTPTemporaryRedirect("/chat_stream")

    async with scripted(script) as server:
        load = await measure(server)
        assert len(server.exchanges) == 2
    assert load.records[0].reason.startswith("HTTP 307")
