"""Tests of promise 1: N requests run, Q wait, and further ones are refused immediately, before any work."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from aiochatstream import ChatPrompt, ChatStream, GenerationParams, Limits
from tests.helpers import Client, ClientOf, MakeStepper, StartServer, echo, sse_events, until
from tests.small_engine import SmallEngine

pytestmark = pytest.mark.both_loops


async def status_and_headers(client: Client, text: str = "hi") -> tuple[int, Mapping[str, str]]:
    async with client.post(user_input=text) as response:
        await response.read()
        return response.status, response.headers


async def test_a_burst_fills_exactly_the_slots_and_the_queue(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=1, max_queue_size=1, params=GenerationParams(max_new_tokens=1)
        )
    )
    clients = [client_of(server) for _ in range(10)]
    requests = [asyncio.create_task(status_and_headers(client)) for client in clients]
    await until(lambda: sum(request.done() for request in requests) == 8)
    assert len(engine.calls) <= 1  # the engine has not seen the refused requests
    engine.allow(2)
    outcomes = await asyncio.gather(*requests)
    assert sorted(status for status, _ in outcomes) == [200, 200, *[503] * 8]
    for status, headers in outcomes:
        if status == 503:
            assert int(headers["Retry-After"]) >= 1
            assert "Set-Cookie" not in headers
    assert len(engine.calls) == 2
    assert engine.most_running == 1
    assert server.idle


async def test_a_refused_request_is_not_tokenized(
    start: StartServer, client_of: ClientOf, small_engine: SmallEngine
) -> None:
    tokenized = []

    class RecordingPrompt(ChatPrompt):
        def encode(self) -> list[int]:
            tokenized.append(self.message)
            return super().encode()

    server = await start(
        ChatStream(
            engine=small_engine,
            num_of_concurrent_executions=1,
            max_queue_size=0,
            chat_prompt_clazz=RecordingPrompt,
        )
    )
    tokenized.clear()  # the checks at startup
    async with client_of(server).post(accept="text/event-stream", user_input="Tell me a story.") as response:
        await anext(sse_events(response))
        status, _ = await status_and_headers(client_of(server), "refused")
        assert status == 503
        assert set(tokenized) == {"Tell me a story."}
    await until(lambda: server.idle)


@pytest.mark.parametrize(("slots", "queue"), [(1, 0), (2, 1), (3, 4)])
async def test_the_slots_limit_the_concurrent_answers(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, slots: int, queue: int
) -> None:
    engine = stepper()
    chat_stream = ChatStream(
        engine=engine,
        num_of_concurrent_executions=slots,
        max_queue_size=queue,
        params=GenerationParams(max_new_tokens=1),
    )
    server = await start(chat_stream)
    requests = [asyncio.create_task(status_and_headers(client_of(server))) for _ in range(slots + queue + 2)]
    await until(lambda: sum(request.done() for request in requests) == 2 and len(engine.calls) == slots)
    assert (chat_stream.admission.running, chat_stream.admission.waiting) == (slots, queue)
    engine.allow(slots + queue)
    statuses = sorted(status for status, _ in await asyncio.gather(*requests))
    assert statuses == [*[200] * (slots + queue), 503, 503]
    assert engine.most_running == slots


async def test_waiting_requests_are_served_in_order_and_receive_their_positions(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=1, max_queue_size=3, params=GenerationParams(max_new_tokens=1)
        )
    )
    events_of: dict[str, list[Any]] = {}

    async def ask(name: str) -> None:
        async with client_of(server).post(accept="text/event-stream", user_input=name) as response:
            async for event, data in sse_events(response):
                events_of.setdefault(name, []).append(data["position"] if event == "queued" else event)

    tasks = []
    for position, name in enumerate(["a", "b", "c", "d"]):
        tasks.append(asyncio.create_task(ask(name)))
        await until(partial(operator.contains, events_of, name))
        assert server.chat_stream.admission.waiting == position
    for served in range(1, 5):
        engine.allow()
        await until(partial(lambda count: engine.closed == count, served))
    await asyncio.gather(*tasks)
    end = ["start", "delta", "done"]
    assert events_of == {"a": end, "b": [1, *end], "c": [2, 1, *end], "d": [3, 2, 1, *end]}
    assert [messages[-1]["content"] for messages in engine.calls] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
async def test_a_request_immediately_after_an_answer_is_never_refused(
    start: StartServer, client_of: ClientOf, accept: str
) -> None:
    server = await start(ChatStream(engine=echo, num_of_concurrent_executions=1, max_queue_size=0))
    client = client_of(server)
    for turn in range(100):
        async with client.post(accept=accept, user_input=f"message {turn}") as response:
            body = await response.text()
            assert response.status == 200, body
    assert len(await client.history()) == 200


async def test_a_request_that_waits_too_long_is_refused(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=2, limits=Limits(max_queue_wait=0.01))
    )
    running = asyncio.create_task(status_and_headers(client_of(server)))
    await until(lambda: engine.calls)
    status, headers = await status_and_headers(client_of(server))
    assert status == 503
    assert int(headers["Retry-After"]) >= 1
    async with client_of(server).post(accept="text/event-stream", user_input="hi") as response:
        events = [event async for event in sse_events(response)]
    assert [name for name, _ in events] == ["queued", "error"]
    assert events[-1][1]["error"]["error"] == "too_many_requests"
    assert server.chat_stream.admission.waiting == 0
    running.cancel()
    engine.allow(1000)
    await until(lambda: server.idle)


async def test_an_answer_that_takes_too_long_ends_with_reason_length(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, limits=Limits(max_answer=0.05)))
    engine.allow(1)
    client = client_of(server)
    asking = asyncio.create_task(client.say("hi"))
    await until(lambda: engine.calls)
    while not asking.done():
        engine.allow(1)
        await asyncio.sleep(0.01)
    assert (await asking)["finish_reason"] == "length"
    assert (await client.history())[1]["state"] == "complete"


async def test_overload_status_can_be_429(start: StartServer, stepper: MakeStepper, client_of: ClientOf) -> None:
    engine = stepper()
    server = await start(
        ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=0, limits=Limits(overload_status=429))
    )
    running = asyncio.create_task(status_and_headers(client_of(server)))
    await until(lambda: engine.calls)
    status, headers = await status_and_headers(client_of(server))
    assert status == 429
    assert "Retry-After" in headers
    running.cancel()
    engine.allow(1000)
    await until(lambda: server.idle)


async def test_get_load_returns_slots_and_queue(start: StartServer, stepper: MakeStepper, client_of: ClientOf) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=2, max_queue_size=3, params=GenerationParams(max_new_tokens=1)
        )
    )
    requests = [asyncio.create_task(status_and_headers(client_of(server))) for _ in range(3)]
    await until(lambda: server.chat_stream.admission.waiting == 1)
    client = client_of(server)
    async with client.session.get(f"{server.url}/get_load") as response:
        load = await response.json()
    worker = load["chatstream_workers"][0]
    assert load["success"] is True
    assert (worker["processing"], worker["waiting"]) == (2, 1)
    assert (worker["max_processing"], worker["max_waiting"]) == (2, 3)
    engine.allow(3)
    await asyncio.gather(*requests)
