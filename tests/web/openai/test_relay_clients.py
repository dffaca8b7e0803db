"""Clients of a relay that leave, read slowly or wait, and endpoints with other bodies than chats."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aiochatstream import ChatStream, Limits, Models
from tests.fake_faults import Fault
from tests.fake_upstream import FakeUpstream
from tests.helpers import Server, StartServer, echo, post_bytes, serving, until
from tests.web.openai.helpers import OpenAIClientOf
from tests.web.openai.relays import CHAT, HELLO, WORDS, post, relay_to, stream

STAGES = ("request", "headers", "role", "words")
"""Moments at which an upstream falls silent: before headers, after them, after the role, after some words."""


def running(chat_stream: ChatStream) -> int:
    """Return the number of answers of all servers."""
    engine: Any = chat_stream.engine
    return sum(server.running for server in engine._pool._servers.values())


@pytest.mark.both_loops
@pytest.mark.parametrize(
    ("stage", "options"), [*((stage, {"stream": True}) for stage in STAGES), ("request", {}), ("words", {})]
)
async def test_a_client_that_leaves_closes_the_connection_to_a_silent_server(
    start: StartServer, stage: str, options: dict[str, Any]
) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream))
        upstream.faults.append(Fault("silence", stage, words=3))
        request = asyncio.create_task(post(server.url, CHAT, {"messages": HELLO, **options}))
        await until(lambda: upstream.running)
        request.cancel()
        await until(lambda: upstream.disconnects)
        await until(lambda: server.idle and not running(server.chat_stream))
        assert 'finished_reason="cancelled"} 1.0' in server.chat_stream.metrics.render().decode()


async def test_a_client_that_leaves_in_mid_text_closes_the_connection(start: StartServer) -> None:
    async with FakeUpstream(words=10_000, token_s=0.01) as upstream:
        server = await start(relay_to(upstream))
        request = asyncio.create_task(stream(server.url))
        await until(lambda: upstream.words_sent > 3)
        request.cancel()
        await until(lambda: upstream.disconnects and server.idle)


async def test_a_client_that_leaves_the_queue_sends_no_request(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream, slots=1))
        upstream.faults.append(Fault("silence", "request"))
        first = asyncio.create_task(stream(server.url))
        await until(lambda: upstream.running)
        second = asyncio.create_task(stream(server.url))
        await until(lambda: server.chat_stream.admission.waiting)
        second.cancel()
        await until(lambda: not server.chat_stream.admission.waiting)
        first.cancel()
        await until(lambda: server.idle)
        assert len(upstream.requests) == 1


async def test_the_queue_is_limited_and_its_wait_too(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream, slots=1, max_queue_size=1, limits=Limits(max_queue_wait=0.5)))
        upstream.faults.append(Fault("silence", "request"))
        first = asyncio.create_task(stream(server.url))
        await until(lambda: upstream.running)
        second = asyncio.create_task(stream(server.url))
        await until(lambda: server.chat_stream.admission.waiting)
        for reply in (await stream(server.url), await second):
            assert (reply.status, reply.json["error"]["code"]) == (503, "too_many_requests")
            assert "Retry-After" in reply.headers
        first.cancel()
        assert 'requests_refused_total{reason="too_many_requests"} 1.0' in server.chat_stream.metrics.render().decode()


async def connect(server: Server, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request from a socket with a small buffer, of which nothing is read yet."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=4096)
    transport: Any = writer.transport
    transport.pause_reading()
    writer.write(post_bytes(json.dumps(body), path=CHAT))
    return reader, writer


class EndlessUpstream:
    """A server that streams large events without an end.

    sent: number of bytes. connections: number of running responses.
    """

    def __init__(self) -> None:
        self.sent = self.connections = 0
        self.app = web.Application()
        self.app.add_routes([web.get("/v1/models", self._models), web.post(CHAT, self._stream)])

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        event = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b"x" * 50_000)
        self.connections += 1
        try:
            while True:
                await response.write(event)
                self.sent += len(event)
        finally:
            self.connections -= 1


def outages(server: Server) -> int:
    engine: Any = server.chat_stream.engine
    return sum(each.outages for each in engine._pool._servers.values())


@pytest.mark.both_loops
async def test_a_slow_client_slows_the_server_down_without_making_it_look_hung(start: StartServer) -> None:
    upstream = EndlessUpstream()
    async with serving(upstream.app) as url:
        server = await start(relay_to(url, stall=0.2))
        _, writer = await connect(server, {"messages": HELLO, "stream": True})
        await until(lambda: upstream.sent)
        sent = 0
        while sent != upstream.sent:  # until nothing more is accepted for longer than the stall limit
            sent = upstream.sent
            await asyncio.sleep(0.5)
        assert (upstream.connections, outages(server)) == (1, 0)
        writer.close()
        await until(lambda: server.idle and not upstream.connections)


async def test_a_client_that_reads_nothing_is_disconnected(start: StartServer) -> None:
    upstream = EndlessUpstream()
    async with serving(upstream.app) as url:
        server = await start(relay_to(url, limits=Limits(write_timeout=0.3)))
        _, writer = await connect(server, {"messages": HELLO, "stream": True})
        await until(lambda: upstream.sent)
        await until(lambda: server.idle and not upstream.connections)
        assert outages(server) == 0
        writer.close()


async def test_streams_get_heartbeats_while_they_wait_and_the_answer_follows(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiochatstream.web.openai.relay.HEARTBEAT_SECONDS", 0.02)
    async with FakeUpstream(words=WORDS, first_token_s=0.1, token_s=0.05, split_bytes=30) as upstream:
        server = await start(relay_to(upstream))
        reply = await stream(server.url)
        assert reply.body.startswith(b": still here\n\n: still here\n\n")
        upstream.settings.first_token_s = upstream.settings.token_s = 0.0
        direct = await stream(upstream.url)
        assert reply.body.replace(b": still here\n\n", b"") == direct.body
        assert (await post(server.url, CHAT, {"messages": HELLO})).json["usage"]


RESPONSE = {"id": "resp_1", "object": "response", "model": "fake", "error": None}
USAGE = {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 3}, "output_tokens": 9,
         "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 16}  # fmt: skip
RESPONSE_EVENTS = [
    {"type": "response.created", "sequence_number": 0, "response": {**RESPONSE, "usage": None}},
    {"type": "response.output_text.delta", "sequence_number": 1, "delta": "response.com"},
    {"type": "response.output_text.delta", "sequence_number": 2, "delta": "pleted"},
    {"type": "response.completed", "sequence_number": 3, "response": {**RESPONSE, "usage": USAGE}},
]
RESPONSE_STREAM = b"".join(
    b"event: %s\r\ndata: %s\r\n\r\n" % (str(event["type"]).encode(), json.dumps(event).encode())
    for event in RESPONSE_EVENTS
)


def other_server(events: bytes = RESPONSE_STREAM) -> web.Application:
    """Return a server with ``/v1/responses`` and ``/v1/embeddings``."""

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    async def responses(request: web.Request) -> web.Response:
        if (await request.json()).get("stream"):
            return web.Response(body=events, content_type="text/event-stream")
        return web.json_response({**RESPONSE, "usage": USAGE, "user": None})

    async def embeddings(request: web.Request) -> web.Response:
        texts = (await request.json())["input"]
        data = [{"object": "embedding", "index": k, "embedding": [0.25] * 4096} for k in range(len(texts))]
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        return web.json_response({"object": "list", "model": "fake", "data": data, "usage": usage})

    app = web.Application()
    app.add_routes(
        [
            web.get("/v1/models", models),
            web.post("/v1/responses", responses),
            web.post("/v1/embeddings", embeddings),
        ]
    )
    return app


async def test_responses_are_relayed(start: StartServer) -> None:
    async with serving(other_server()) as url:
        server = await start(relay_to(url))
        streamed = await post(server.url, "/v1/responses", {"input": "hi", "stream": True})
        assert streamed.body == RESPONSE_STREAM
        whole = await post(server.url, "/v1/responses", {"input": "hi"})
        assert whole.json == {**RESPONSE, "usage": USAGE, "user": None}
        await until(lambda: server.idle)
        metrics = server.chat_stream.metrics.render().decode()
        for name, count in (("prompt", 7), ("cached", 3), ("generation", 9), ("thinking", 2)):
            assert f"aiochatstream_{name}_tokens_total {2 * count}.0" in metrics


async def test_a_stream_of_responses_without_its_last_event_ends_with_an_error(start: StartServer) -> None:
    async with serving(other_server(RESPONSE_STREAM[: RESPONSE_STREAM.rindex(b"event:")])) as url:
        server = await start(relay_to(url))
        reply = await post(server.url, "/v1/responses", {"input": "hi", "stream": True})
        assert reply.events[-1]["error"]["code"] == "upstream_failed"


async def test_an_endpoint_that_the_server_lacks_is_not_found(start: StartServer) -> None:
    async with FakeUpstream() as upstream:
        server = await start(relay_to(upstream))
        reply = await post(server.url, "/v1/responses", {"input": "hi"})
        assert (reply.status, reply.json["error"]["code"]) == (404, "not_found")
        assert (await stream(server.url)).is_whole


async def test_embeddings_are_relayed_and_large_bodies_too(start: StartServer, openai_of: OpenAIClientOf) -> None:
    async with serving(other_server()) as url:
        server = await start(relay_to(url))
        texts = ["text"] * 100
        answer = await openai_of(server).embeddings.create(model="fake", input=texts, encoding_format="float")
        assert [each.embedding for each in answer.data] == [[0.25] * 4096] * 100
        await until(lambda: server.idle)
        assert "aiochatstream_prompt_tokens_total 5.0" in server.chat_stream.metrics.render().decode()
        document = await read_json(f"{server.url}/openapi.json")
        assert "/v1/embeddings" in document["paths"]


async def test_without_servers_to_relay_to_there_are_no_embeddings(start: StartServer) -> None:
    server = await start(ChatStream(engine=echo))
    assert (await post(server.url, "/v1/embeddings", {"input": "hi"})).status == 404
    async with FakeUpstream() as upstream:
        app = web.Application()
        Models({"local": ChatStream(engine=echo), "remote": relay_to(upstream)}).setup_openai(app)
        async with serving(app) as url:
            reply = await post(url, "/v1/embeddings", {"model": "local", "input": "hi"})
            assert (reply.status, reply.json["error"]["param"]) == (404, "model")
            assert (await stream(url, model="remote")).is_whole
            local = await stream(url, model="local")
            assert local.text == HELLO[-1]["content"] + " "


async def read_json(url: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.json()
