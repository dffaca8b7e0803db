"""One request over a real socket, in virtual time, against figures computed by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from aiochatstream.bench.command import LoadTest
from aiochatstream.bench.metrics import summarize
from tests.bench.events import delta, done
from tests.bench.scripted_server import Exchange, Script, ScriptedServer, answer, measure, plan, scripted


async def sse(exchange: Exchange) -> None:
    """Answer with 2 s to the headers, 1 s to the first text, gaps of 0.25 and 0.75 s, 0.5 s to the end: E2E 4.5 s."""
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


async def chatstream(exchange: Exchange) -> web.StreamResponse:
    exchange.time.seconds += 2.0
    await exchange.open("text/plain")
    await exchange.send("a<::EOS::>", after=1.0)
    await exchange.send("ab<::EOS::>", after=0.25)
    await exchange.send("abc<::EOS::>", after=0.75)
    exchange.time.seconds += 0.5
    return exchange.response


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
    ("protocol", "script", "path", "tokens", "options"),
    [
        ("sse", sse, "/chat_stream", 7, {}),
        ("text", text, "/chat_stream", 3, {}),
        ("openai", openai, "/v1/chat/completions", 7, {"model": "m"}),
        ("chatstream", chatstream, "/chat_stream", 3, {"max_tokens": None, "temperature": None}),
    ],
)
async def test_each_protocol_records_the_elapsed_times(
    protocol: str, script: Script, path: str, tokens: int, options: dict[str, Any]
) -> None:
    async with scripted(script, path) as server:
        run = await measure(server, protocol=protocol, **options)
    [record] = run.records
    assert record.outcome == "completed", record.reason
    assert record.ttft == 3.0
    assert record.gaps == [0.25, 0.75]
    assert record.e2e == 4.5
    assert record.tokens == tokens
    assert record.tpot == 1.5 / (tokens - 1)
    summary = summarize(run)
    assert summary.seconds == 4.5
    assert summary.tokens_per_s == tokens / 4.5
    assert summary.token_source == ("server" if tokens == 7 else "pieces")
    assert (summary.queue_s.p50 if summary.queue_s else None) == (1.5 if protocol == "sse" else None)


async def test_wire_bytes_include_chunk_framing() -> None:
    async with scripted(text) as server:
        run = await measure(server, protocol="text")
    assert run.records[0].wire_bytes == 3 * len("1\r\na\r\n") + len("0\r\n\r\n")
    assert summarize(run).bytes_per_token == 23 / 3


@asynccontextmanager
async def raw_server(reads: list[bytes], content_type: str) -> AsyncIterator[ScriptedServer]:
    """Run a server that writes each of ``reads`` after the client has read the one before."""
    server, closed = ScriptedServer(answer), asyncio.Semaphore(0)

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


@pytest.mark.parametrize("division", ["merged", "as sent", "split"])
@pytest.mark.parametrize("protocol", ["sse", "text", "chatstream"])
async def test_merged_and_split_reads_do_not_change_counts(protocol: str, division: str) -> None:
    texts = ["あいう", "some words ", "c", "d"]
    options = {"max_tokens": None, "temperature": None} if protocol == "chatstream" else {}
    chunks = {
        "sse": [*map(delta, texts), done(4)],
        "text": texts,
        "chatstream": ["".join(texts[: count + 1]) + "<::EOS::>" for count in range(4)],
    }[protocol]
    body = [*map(http_chunk, chunks), b"0\r\n\r\n"]
    whole = b"".join(body)
    fives = [whole[start : start + 5] for start in range(0, len(whole), 5)]
    reads = {"merged": [whole], "as sent": body, "split": fives}[division]
    async with raw_server(reads, "text/event-stream" if protocol == "sse" else "text/plain") as server:
        run = await measure(server, protocol=protocol, **options)
    [record] = run.records
    assert (record.outcome, record.reason) == ("completed", "")
    assert len(record.arrivals) == record.tokens == 4
    assert record.wire_bytes == len(whole)


@pytest.mark.parametrize("body", [b"zz\r\nhello\r\n", b"5\r\nhel", b"-1\r\n", b"5\r\nhello world\r\n"])
async def test_a_body_that_is_not_http_fails(body: bytes) -> None:
    async with raw_server([body], "text/plain") as server:
        test = LoadTest(plan(server.url, protocol="text"), server.time.clock, progress=False)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"did not answer the first request: .+"):
                await test.run()


async def test_a_connection_lost_during_the_answer_is_a_failure() -> None:
    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 0:
            return await answer(exchange)
        await exchange.open()
        await exchange.send(delta("half an "))
        exchange.abort()
        return None

    async with scripted(script) as server:
        run = await measure(server, requests=3)
    assert [record.outcome for record in run.records] == ["failed"] * 3
    assert "connection lost during the answer" in run.records[0].reason
    assert summarize(run).ttft_s is None


async def test_a_refused_connection_is_a_failure() -> None:
    async def script(exchange: Exchange) -> None:
        await server.site.stop()
        await exchange.open(Connection="close")
        await exchange.response.write((delta("a") + done(1)).encode())

    async with scripted(script) as server:
        run = await measure(server, requests=2)
    assert [record.reason for record in run.records] == ["cannot connect: Connection refused"] * 2


async def test_an_endless_answer_fails_at_the_timeout() -> None:
    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 0:
            return await answer(exchange)
        await exchange.open()
        await exchange.send(delta("half an "))
        await asyncio.Event().wait()
        return None

    async with scripted(script) as server:
        run = await measure(server, timeout=0.3)
    assert run.records[0].outcome == "failed"
    assert run.records[0].reason == "not complete within 0.3 s"


@pytest.mark.parametrize("status", [503, 429])
async def test_refusals_are_timed(status: int) -> None:
    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 0:
            return await answer(exchange)
        exchange.time.seconds += 0.125
        body = {"error": "too_many_requests", "detail": "The queue is full."}
        return web.json_response(body, status=status, headers={"Retry-After": "0"})

    async with scripted(script) as server:
        run = await measure(server, requests=2)
    summary = summarize(run)
    assert (summary.refused, summary.failed, summary.completed) == (2, 0, 0)
    assert summary.refused_s is not None
    assert summary.refused_s.mean == summary.refused_s.p99 == 0.125
    assert summary.reasons == {"too_many_requests": 2}


async def test_a_refusal_by_chatstream_with_status_200_is_a_refusal() -> None:
    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 0:
            return await chatstream(exchange)
        return web.json_response({"error": "too_many_requests"})

    async with scripted(script) as server:
        run = await measure(server, protocol="chatstream", max_tokens=None, temperature=None)
    assert run.records[0].outcome == "refused"


async def test_a_redirect_is_not_followed() -> None:
    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 0:
            return await answer(exchange)
        raise web.HTTPTemporaryRedirect("/chat_stream")

    async with scripted(script) as server:
        run = await measure(server)
        assert len(server.exchanges) == 2
    assert run.records[0].reason.startswith("HTTP 307")
