"""Relayed requests and responses: they stay as they are, for any field, under this server's keys and metrics."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aiochatstream.engines.upstream import hops
from tests.fake_answers import answer_text
from tests.fake_upstream import FakeUpstream
from tests.helpers import StartServer, serving, until
from tests.web.openai.helpers import OpenAIClientOf, tool
from tests.web.openai.relays import CHAT, HELLO, KEY, WORDS, post, relay_to, stream

TOOLS = {"tools": [tool("look")], "parallel_tool_calls": False}
SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
PICTURE = {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]}]}
SETTINGS: dict[str, Any] = {
    "words": WORDS,
    "reasoning": 3,
    "tool_calls": [{"name": "look", "arguments": '{"at": "the [DONE] sea"}'}],
}

BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": HELLO, "temperature": 1e-7, "unknown": {"field": [1.0, 12345678901234567890]}}),
    (CHAT, {"messages": HELLO, **TOOLS}),
    (CHAT, {"messages": HELLO, **SCHEMA, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {**PICTURE, "n": 2, "max_tokens": 5, "stop": ["moss"]}),
    ("/v1/completions", {"prompt": "Once upon", "logprobs": 1, "n": 2}),
    ("/v1/completions", {"prompt": [1, 2, 3], "echo": True, "suffix": "\ud83c\udf89"}),
]


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("split_bytes", [None, 7])
async def test_requests_and_responses_are_those_of_a_direct_request(
    start: StartServer, path: str, body: dict[str, Any], options: dict[str, Any], split_bytes: int | None
) -> None:
    settings = {**SETTINGS, "split_bytes": split_bytes}
    async with FakeUpstream(**settings) as upstream, FakeUpstream(**settings) as twin:
        server = await start(relay_to(upstream))
        data = json.dumps({"model": "fake", **body, **options}).encode()
        relayed, direct = await post(server.url, path, data), await post(twin.url, path, data)
        assert (relayed.status, relayed.content_type) == (200, direct.content_type)
        assert relayed.body == direct.body
        request = dict(upstream.requests[0].body)
        if options == {"stream": True}:
            assert request.pop("stream_options") == {"include_usage": True}
        del request["cache_salt"]
        assert request == twin.requests[0].body


async def test_the_body_goes_on_byte_for_byte(start: StartServer) -> None:
    bodies = []

    async def answer(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.json_response({"object": "list", "usage": {"prompt_tokens": 3, "total_tokens": 3}})

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "own", "owned_by": "someone"}]})

    app = web.Application()
    app.add_routes([web.post("/v1/completions", answer), web.get("/v1/models", models)])
    async with serving(app) as url:
        server = await start(relay_to(url))
        text = '\ufeff { "seed" : 1E0,\t"model":"own","a":{"model":"x"}, "prompt":"\\u00e9é\\ud83c\\udf89" }\n'
        assert (await post(server.url, "/v1/completions", text.encode())).status == 200
        assert bodies == [text[1:].encode()]
        await post(server.url, "/v1/completions", b"{}")
        assert bodies[1] == b'{"model":"own"}'


async def test_clients_see_the_name_of_the_model_that_they_request() -> None:
    async with FakeUpstream(words=2, model="vendor/own-名") as upstream:
        chat_stream = relay_to(upstream)
        app = web.Application()
        chat_stream.setup_openai(app, model_name="ours")
        async with serving(app) as url:
            whole = await post(url, CHAT, {"model": "ours", "messages": HELLO})
            streamed = await stream(url, model="ours")
            unknown = await post(url, CHAT, {"model": "vendor/own-名", "messages": HELLO})
            async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models") as response:
                [model] = (await response.json())["data"]
        assert {whole.json["model"], *(event["model"] for event in streamed.events)} == {"ours"}
        assert {request.body["model"] for request in upstream.requests} == {"vendor/own-名"}
        assert (unknown.status, unknown.json["error"]["code"]) == (404, "model_not_found")
        assert (model["id"], model["max_model_len"]) == ("ours", 100_000)


async def test_openais_client_reads_tools_thoughts_and_usage(start: StartServer, openai_of: OpenAIClientOf) -> None:
    async with FakeUpstream(**SETTINGS) as upstream:
        client = openai_of(await start(relay_to(upstream)))
        [model] = (await client.models.list()).data
        messages: Any = HELLO
        answer = await client.chat.completions.create(model=model.id, messages=messages, tools=[tool("look")])
        message: Any = answer.choices[0].message
        [call] = message.tool_calls
        assert json.loads(call.function.arguments) == {"at": "the [DONE] sea"}
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model=model.id, messages=messages, stream=True, stream_options={"include_usage": True}
            )
        ]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == WORDS + 3
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer_text(HELLO, WORDS)


async def test_the_usage_is_counted_and_its_chunk_reaches_only_clients_that_request_it(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream))
        for options in ({}, {"stream_options": None}, {"stream_options": {"include_usage": False}}):
            reply = await stream(server.url, **options)
            assert reply.is_whole
            assert all(event["choices"] for event in reply.events)
            assert upstream.requests[-1].body["stream_options"] == {"include_usage": True}
        assert (await post(server.url, CHAT, {"messages": HELLO})).json["usage"]["completion_tokens"] == WORDS
        await until(lambda: server.idle)
        metrics = server.chat_stream.metrics.render().decode()
        prompt_tokens = len(["<system>", "Be", "kind.", "<user>", "Where", "is", "it?"])
        assert f"aiochatstream_generation_tokens_total {4 * WORDS}.0" in metrics
        assert f"aiochatstream_prompt_tokens_total {4 * prompt_tokens}.0" in metrics
        assert f"aiochatstream_cached_tokens_total {3 * prompt_tokens}.0" in metrics
        assert 'requests_finished_total{finished_reason="stop"} 4.0' in metrics
        assert "time_to_first_token_seconds_count 4.0" in metrics


async def test_the_log_has_the_id_of_the_response(start: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream))
        reply = await stream(server.url, max_tokens=5)
        await until(lambda: server.idle)
    message_id = reply.headers["X-Request-Id"].removeprefix("req_")
    [line] = [record.getMessage() for record in caplog.records if message_id in record.getMessage()]
    assert "finished_reason=length" in line
    assert "completion_tokens=5" in line


async def test_only_requests_with_a_key_reach_a_server_and_no_other_headers(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream), api_keys=["key-" + "1" * 20, "key-" + "2" * 20])
        assert (await stream(server.url)).status == 401
        assert upstream.requests == []
        for number in "112":
            headers = {"Authorization": "Bearer key-" + number * 20, "Cookie": "a=b", "X-Session-Id": "mine"}
            assert (await post(server.url, CHAT, {"messages": HELLO}, **headers)).status == 200
        first, same, other = upstream.requests
        names = {"Host", "Accept", "Accept-Encoding", "User-Agent", "Content-Length", "Content-Type", "Authorization"}
        assert first.headers.keys() == names | {hops.HEADER, "X-Session-Id"}
        assert first.headers["Authorization"] == f"Bearer {KEY}"
        assert first.headers["X-Session-Id"] == same.headers["X-Session-Id"] != other.headers["X-Session-Id"]
        assert first.body["cache_salt"] == same.body["cache_salt"] != other.body["cache_salt"]


async def test_a_growing_conversation_stays_at_one_server(start: StartServer) -> None:
    async with FakeUpstream(words=2) as first, FakeUpstream(words=2) as second:
        server = await start(relay_to(first, second))
        for name in map(str, range(6)):
            messages = [{"role": "user", "content": name}]
            counts = set()
            for _ in range(3):
                before = len(first.requests)
                await post(server.url, CHAT, {"messages": messages})
                counts.add(len(first.requests) - before)
                messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "more"}]
            assert len(counts) == 1


async def test_several_answers_use_as_many_slots(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS, first_token_s=60) as upstream:
        server = await start(relay_to(upstream, slots=4))
        request = asyncio.create_task(stream(server.url, n=3))
        await until(lambda: upstream.running)
        engine: Any = server.chat_stream.engine
        assert (server.chat_stream.admission.running, engine._pool.servers[0].running) == (3, 3)
        request.cancel()
        await until(lambda: server.idle and not engine._pool.servers[0].running)


@pytest.mark.parametrize("body", [{"prompt": ["a"] * 129, "n": 2}, {"prompt": [[1]] * 257}])
async def test_a_request_for_too_many_answers_is_refused(start: StartServer, body: dict[str, Any]) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream, slots=2))
        reply = await post(server.url, "/v1/completions", {"model": "fake", **body})
        assert (reply.status, upstream.requests) == (400, [])
        assert "must request 1 to 256 answers in total" in reply.json["error"]["message"]


async def test_more_answers_than_slots_start_with_the_first_slot(start: StartServer) -> None:
    async with FakeUpstream(words=WORDS) as upstream:
        server = await start(relay_to(upstream, slots=2, max_queue_size=1))
        assert (await stream(server.url, n=5)).is_whole
        await until(lambda: server.idle)
