"""Promises 2 and 3: a disconnected client's slots and queue places become free, and nothing of its request remains."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from aiochatstream import ChatStream, GenerationParams, Limits
from tests.helpers import ClientOf, MakeStepper, StartServer, until

pytestmark = pytest.mark.both_loops

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


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
async def test_a_disconnect_frees_the_slot_or_the_queue_place(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, path: str, body: dict[str, Any]
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=1))

    async def send() -> None:
        async with client_of(server).post(path, **body) as response:
            await response.read()

    requests = [asyncio.create_task(send()) for _ in range(2)]
    await until(lambda: engine.calls and server.chat_stream.admission.waiting == 1)
    for task in requests:
        task.cancel()
    await until(lambda: server.chat_stream.admission.waiting == 0)
    engine.allow(1)
    await until(lambda: server.idle)
    assert engine.closed == len(engine.calls) == 1


async def test_a_disconnect_stops_all_n_answers(start: StartServer, stepper: MakeStepper, client_of: ClientOf) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=3))

    async def send() -> None:
        async with client_of(server).post("/v1/chat/completions", **BODY, n=3) as response:
            await response.read()

    request = asyncio.create_task(send())
    await until(lambda: engine.running == 3)
    request.cancel()
    await until(lambda: all(turn.ending for turn in server.chat_stream.running_turns))
    engine.allow(3)
    await until(lambda: server.idle)
    assert engine.closed == 3


async def test_after_200_aborted_streams_all_gauges_are_zero_and_a_new_request_is_answered(
    start: StartServer, client_of: ClientOf
) -> None:
    def slow(messages: Any, params: GenerationParams) -> Iterator[str]:
        for _ in range(50):
            threading.Event().wait(0.002)  # an engine's step takes time
            yield "word "

    server = await start(ChatStream(engine=slow, num_of_concurrent_executions=8, max_queue_size=200))
    session = client_of(server).session

    async def abort(number: int) -> None:
        try:
            async with asyncio.timeout(0.01 * (number % 20)):
                async with session.post(f"{server.url}/v1/chat/completions", json={**BODY, "stream": True}) as response:
                    await response.read()
        except TimeoutError:
            pass

    await asyncio.gather(*map(abort, range(200)))
    await until(lambda: server.idle)
    async with client_of(server).post("/v1/chat/completions", **BODY) as response:
        assert (await response.json())["choices"][0]["message"]["content"] == "word " * 50
    await until(lambda: len(server.chat_stream.disconnects) == 0)


async def test_a_shutdown_ends_a_stream_with_an_error(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, limits=Limits(shutdown_timeout=0.1)))
    engine.allow(1)
    async with client_of(server).post("/v1/chat/completions", **BODY, stream=True) as response:
        await response.content.readuntil(b'"1 "')
        closing = asyncio.create_task(server.runner.cleanup())
        await until(lambda: all(turn.ending for turn in server.chat_stream.running_turns))
        engine.allow(1)
        rest = await response.text()
    await closing
    assert '"code":"draining"' in rest
    assert "[DONE]" not in rest
