"""Tests of conversations with upstreams: stopping, leaving and failures, from the client to the upstream."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from aiochatstream import ChatStream, GenerationParams
from aiochatstream.engines.upstream import UpstreamEngine
from tests.fake_answers import answer_text
from tests.fake_faults import Fault
from tests.fake_upstream import FakeUpstream
from tests.helpers import Client, ClientOf, Server, StartServer, sse_events, until

pytestmark = pytest.mark.both_loops

WORDS = 12
HELLO = [{"role": "user", "content": "Hello"}]
STAGES = ("request", "headers", "role", "words")
"""Moments at which an upstream falls silent: before headers, after them, after the role, after some words."""

Ending = Literal["leave", "stop", "clear"]


def chat_of(*urls: str, **options: Any) -> ChatStream:
    return ChatStream(
        engine=UpstreamEngine(urls, slots=1, **options), params=GenerationParams(temperature=0.0), max_queue_size=2
    )


async def ask(client: Client, text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of an answer."""
    async with client.post(accept="text/event-stream", user_input=text) as response:
        return [event async for event in sse_events(response)]


async def end(client: Client, asking: asyncio.Task[Any], ending: Ending) -> None:
    """End a running answer in one of three ways."""
    if ending == "leave":
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        return
    async with client.post("/chat_stream/stop" if ending == "stop" else "/clear_context") as response:
        assert response.status == 200, await response.text()
    await asking


def is_idle(server: Server) -> bool:
    engine = server.chat_stream.engine
    assert isinstance(engine, UpstreamEngine)
    return server.idle and not any(upstream.running for upstream in engine._pool.servers)


@pytest.mark.parametrize("ending", ["leave", "stop", "clear"])
@pytest.mark.parametrize("stage", STAGES)
async def test_the_connection_to_a_silent_upstream_is_closed_and_the_slot_is_free(
    start: StartServer, client_of: ClientOf, stage: str, ending: Ending
) -> None:
    async with FakeUpstream(Fault("silence", stage, words=3), words=WORDS) as upstream:
        server = await start(chat_of(upstream.url))
        client = client_of(server)
        asking = asyncio.create_task(ask(client, "Hello"))
        await until(lambda: upstream.running and len(client.session.cookie_jar))
        if stage == "words":
            await until(lambda: any(turn.text.count(" ") == 2 for turn in server.chat_stream.running_turns))
        await end(client, asking, ending)
        await until(lambda: len(upstream.disconnects) == 1)
        await until(lambda: is_idle(server))
        assert (await client.say("Hello"))["finish_reason"] == "stop"  # the only slot is free
        assert upstream.running == 0


@pytest.mark.parametrize("ending", ["leave", "stop", "clear"])
async def test_a_request_that_ends_in_the_queue_never_reaches_the_upstream(
    start: StartServer, client_of: ClientOf, ending: Ending
) -> None:
    async with FakeUpstream(Fault("silence", "request", match="first"), words=WORDS) as upstream:
        server = await start(chat_of(upstream.url))
        first, second = client_of(server), client_of(server)
        running = asyncio.create_task(ask(first, "first"))
        await until(lambda: upstream.running)
        waiting = asyncio.create_task(ask(second, "second"))
        await until(lambda: server.chat_stream.admission.waiting and len(second.session.cookie_jar))
        await end(second, waiting, ending)
        await until(lambda: not server.chat_stream.admission.waiting)
        assert upstream.running == 1
        await end(first, running, "stop")
        await until(lambda: is_idle(server))
    assert "second" not in str(upstream.requests)


async def test_an_answer_that_moves_to_another_upstream_is_one_answer(start: StartServer, client_of: ClientOf) -> None:
    async with FakeUpstream(words=WORDS) as first, FakeUpstream(words=WORDS) as second:
        first.faults = second.faults = [Fault("reset", words=5)]
        server = await start(chat_of(first.url, second.url))
        client = client_of(server)
        events = await ask(client, "Hello")
        assert len(first.requests) + len(second.requests) == 2
        text = "".join(data.get("text", "") for _, data in events)
        assert text == answer_text(HELLO, WORDS)
        assert [name for name, _ in events].count("done") == 1
        assert await client.texts() == ["Hello", text]


async def test_a_broken_answer_is_kept_and_can_be_continued(start: StartServer, client_of: ClientOf) -> None:
    async with FakeUpstream(Fault("reset", words=5), words=WORDS) as upstream:
        server = await start(chat_of(upstream.url, resume=False))
        client = client_of(server)
        events = await ask(client, "Hello")
        name, error = events[-1]
        assert (name, error["error"]["error"]) == ("error", "upstream_failed")
        assert str(upstream.port) not in str(events)
        _, beginning = await client.history()
        assert answer_text(HELLO, WORDS).startswith(beginning["content"])
        assert len(beginning["content"].split(" ")) == 5
        assert beginning["state"] == "interrupted"
        await until(lambda: server.chat_stream.engine.unavailable() is None)
        request: dict[str, Any] = {"continue": True}
        await client.say(**request)
        assert await client.texts() == ["Hello", answer_text(HELLO, WORDS)]


async def test_without_an_upstream_requests_are_refused_until_one_is_back(
    start: StartServer, client_of: ClientOf
) -> None:
    upstream = FakeUpstream(words=WORDS)
    await upstream.start()
    await upstream.close()
    server = await start(chat_of(upstream.url))
    client = client_of(server)
    async with client.post(user_input="Hello") as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
        assert str(upstream.port) not in await response.text()
    await upstream.start()
    await until(lambda: server.chat_stream.engine.unavailable() is None)
    await client.say("Hello")
    await upstream.close()


async def test_metrics_name_each_upstream(start: StartServer, client_of: ClientOf) -> None:
    async with FakeUpstream(Fault("reset", words=5), words=WORDS) as upstream:
        server = await start(chat_of(upstream.url))
        client = client_of(server)
        await client.say("Hello")
        async with client.session.get(f"{server.url}/metrics") as response:
            lines = (await response.text()).splitlines()
    name = f'{{server="127.0.0.1:{upstream.port}"}}'
    assert f"aiochatstream_upstream_failures_total{name} 1.0" in lines
    assert f"aiochatstream_upstream_up{name} 1.0" in lines
    assert "aiochatstream_upstream_resumptions_total 1.0" in lines


async def test_a_front_of_a_front_continues_answers(start: StartServer, client_of: ClientOf) -> None:
    async with FakeUpstream(Fault("reset", words=5), words=WORDS) as upstream:
        inner = await start(chat_of(upstream.url))
        models = await (await client_of(inner).session.get(f"{inner.url}/v1/models")).json()
        assert models["data"][0]["owned_by"] == "vllm"
        outer = await start(chat_of(inner.url))
        events = await ask(client_of(outer), "Hello")
        assert "".join(data["text"] for name, data in events if name == "delta") == answer_text(HELLO, WORDS)
        assert events[-1][0] == "done"
        assert inner.chat_stream.engine.unavailable() is None
