"""Promises 2 and 3 hold here, too: who leaves frees all places, and nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from aiochatstream import ChatStream, GenerationParams, Limits
from tests.helpers import until

pytestmark = pytest.mark.both_loops

BODY = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**BODY, "stream": True}),
        ("/v1/chat/completions", BODY),
        ("/v1/completions", {"prompt": "hi", "stream": True}),
        ("/v1/responses", {"input": "hi", "stream": True}),
        ("/v1/responses", {"input": "hi"}),
    ],
)
async def test_who_leaves_an_answer_or_waits_for_one_frees_the_place(
    start: Any, stepper: Any, client_of: Any, path: str, body: dict[str, Any]
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=1))

    async def ask() -> None:
        async with client_of(server).post(path, **body) as response:
            await response.read()

    asking = [asyncio.create_task(ask()) for _ in range(2)]
    await until(lambda: engine.calls and server.chat_stream.admission.waiting == 1)
    for task in asking:
        task.cancel()
    await until(lambda: server.chat_stream.admission.waiting == 0)
    engine.allow(1)
    await until(lambda: server.idle)
    assert engine.closed == len(engine.calls) == 1


async def test_who_leaves_n_answers_stops_them_all(start: Any, stepper: Any, client_of: Any) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=3))

    async def ask() -> None:
        async with client_of(server).post("/v1/chat/completions", **BODY, n=3) as response:
            await response.read()

    asking = asyncio.create_task(ask())
    await until(lambda: engine.running == 3)
    asking.cancel()
    await until(lambda: all(turn.ending for turn in server.chat_stream.running_turns))
    engine.allow(3)
    await until(lambda: server.idle)
    assert engine.closed == 3


async def test_after_200_streams_whose_clients_give_up_all_gauges_are_zero_and_the_next_one_is_answered(
    start: Any, client_of: Any
) -> None:
    def slow(messages: Any, params: GenerationParams) -> Iterator[str]:
        for _ in range(50):
            threading.Event().wait(0.002)  # an engine's step takes time
            yield "word "

    server = await start(ChatStream(engine=slow, num_of_concurrent_executions=8, max_queue_size=200))
    session = client_of(server).session

    async def give_up(number: int) -> None:
        try:
            async with asyncio.timeout(0.01 * (number % 20)):
                async with session.post(f"{server.url}/v1/chat/completions", json={**BODY, "stream": True}) as response:
                    await response.read()
        except TimeoutError:
            pass

    await asyncio.gather(*map(give_up, range(200)))
    await until(lambda: server.idle)
    async with client_of(server).post("/v1/chat/completions", **BODY) as response:
        assert (await response.json())["choices"][0]["message"]["content"] == "word " * 50
    await until(lambda: not server.chat_stream.disconnects._watched)


async def test_a_shutdown_ends_a_stream_with_an_error(start: Any, stepper: Any, client_of: Any) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, limits=Limits(shutdown_timeout=0.1)))
    engine.allow(1)
    async with client_of(server).post("/v1/chat/completions", **BODY, stream=True) as response:
        await response.content.readuntil(b'"1 "')
        closing = asyncio.create_task(server.chat_stream._shut_down())
        await until(lambda: all(turn.ending for turn in server.chat_stream.running_turns))
        engine.allow(1)
        rest = await response.text()
    await closing
    assert '"code":"draining"' in rest
    assert "[DONE]" not in rest
