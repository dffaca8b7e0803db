"""Tests of promises 2 and 3: a disconnect frees the slot or the place in the queue within one step, without leaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from aiochatstream import ChatStream, GenerationParams, Limits
from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.runtime.running_turn import RunningTurn
from tests.helpers import Client, ClientOf, MakeStepper, StartServer, echo, post_bytes, sse_events, until
from tests.small_engine import SmallEngine
from tests.web.raw_requests import sending

pytestmark = pytest.mark.both_loops

both = pytest.mark.parametrize("handler_cancellation", [False, True], ids=["cancellation off", "cancellation on"])


class LeaveAfter(Protocol):
    async def __call__(self, client: Client, condition: Callable[[], object], accept: str = "text/plain") -> None: ...


@pytest.fixture
async def leave_after() -> LeaveAfter:
    """Return a function that sends a message, and disconnects as soon as a condition is true."""

    async def ask_and_leave(client: Client, condition: Callable[[], object], accept: str = "text/plain") -> None:
        async def ask() -> None:
            async with client.post(accept=accept, user_input="hi") as response:
                await response.read()

        asking = asyncio.create_task(ask())
        await until(condition)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    return ask_and_leave


@both
@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
async def test_a_disconnect_in_the_queue_frees_the_place_immediately(
    start: StartServer,
    stepper: MakeStepper,
    client_of: ClientOf,
    leave_after: LeaveAfter,
    handler_cancellation: bool,
    accept: str,
) -> None:
    engine = stepper()
    chat_stream = ChatStream(
        engine=engine, num_of_concurrent_executions=1, max_queue_size=1, params=GenerationParams(max_new_tokens=1)
    )
    server = await start(chat_stream, handler_cancellation=handler_cancellation)
    running = asyncio.create_task(client_of(server).say("first"))
    await until(lambda: engine.calls)
    await leave_after(client_of(server), lambda: chat_stream.admission.waiting == 1, accept)
    await until(lambda: chat_stream.admission.waiting == 0)  # while the first one still runs
    engine.allow(1)
    await running
    assert len(engine.calls) == 1  # nothing was generated for the disconnected client
    assert server.idle


@both
@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
async def test_a_disconnect_while_streaming_stops_the_generation_within_one_step(
    start: StartServer,
    stepper: MakeStepper,
    client_of: ClientOf,
    leave_after: LeaveAfter,
    handler_cancellation: bool,
    accept: str,
) -> None:
    engine = stepper()
    chat_stream = ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=0)
    server = await start(chat_stream, handler_cancellation=handler_cancellation)
    client = client_of(server)
    engine.allow(3)
    await leave_after(client, lambda: any(turn.text == "1 2 3 " for turn in turns(chat_stream)), accept)
    await until(lambda: any(turn.ending for turn in turns(chat_stream)))
    assert chat_stream.admission.running == 1  # the thread is still in its step, and keeps the slot
    async with client_of(server).post(user_input="too early") as response:
        assert response.status == 503
    engine.allow(1)
    await until(lambda: server.idle)
    assert engine.closed == 1
    assert len(engine.calls) == 1


@both
async def test_a_disconnect_during_prefill_stops_it_within_one_chunk(
    start: StartServer,
    client_of: ClientOf,
    leave_after: LeaveAfter,
    small_engine: SmallEngine,
    monkeypatch: pytest.MonkeyPatch,
    handler_cancellation: bool,
) -> None:
    chat_stream = ChatStream(engine=small_engine, num_of_concurrent_executions=1, max_queue_size=0)
    server = await start(chat_stream, handler_cancellation=handler_cancellation)
    pieces: list[int] = []
    go_on = threading.Semaphore(0)
    batch = small_engine.decoder
    assert isinstance(batch, Batch)
    forward = batch.forward

    def slow_forward(step: Any) -> Any:
        pieces.append(step.ids.shape[1])
        go_on.acquire()
        return forward(step)

    monkeypatch.setattr(batch, "forward", slow_forward)

    async def ask() -> None:
        async with client_of(server).post(user_input="word " * 1200) as response:
            await response.read()

    asking = asyncio.create_task(ask())
    await until(lambda: pieces)
    asking.cancel()
    await until(lambda: all(turn.ending for turn in turns(chat_stream)))
    go_on.release()
    await until(lambda: server.idle)  # at most one further chunk has begun
    go_on.release(100)
    assert (await client_of(server).say("And now?", params={"max_new_tokens": 2}))["usage"]["completion_tokens"] > 0
    assert pieces.count(pieces[0]) <= 2
    assert pieces[0] * 2 < 1200


@both
async def test_the_text_before_a_disconnect_is_saved_as_interrupted(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, handler_cancellation: bool
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(engine=engine, params=GenerationParams(max_new_tokens=3)), handler_cancellation=handler_cancellation
    )
    client = client_of(server)
    engine.allow(3)
    await client.say("first")  # so that the user has a cookie
    engine.allow(2)
    async with client.post(accept="text/event-stream", user_input="second") as response:
        async for name, data in sse_events(response):
            if name == "delta" and data["text"] == "2 ":
                break
    await until(lambda: any(turn.ending for turn in turns(server.chat_stream)))
    engine.allow(1)
    await until(lambda: server.idle)
    states = [(message["content"], message.get("state")) for message in await client.history()]
    assert states == [("first", None), ("1 2 3 ", "complete"), ("second", None), ("1 2 3 ", "interrupted")]


@both
async def test_all_gauges_are_zero_after_many_aborts(
    start: StartServer, client_of: ClientOf, handler_cancellation: bool
) -> None:
    def slow(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        for _ in range(50):
            threading.Event().wait(0.001)  # an engine's step takes time
            yield "word "

    server = await start(
        ChatStream(engine=slow, num_of_concurrent_executions=2, max_queue_size=5),
        handler_cancellation=handler_cancellation,
    )

    async def abort(number: int) -> None:
        accept = ["text/plain", "text/event-stream", "application/json"][number % 3]
        try:
            async with asyncio.timeout(0.002 * (number % 20)):
                async with client_of(server).post(accept=accept, user_input="hi") as response:
                    await response.read()
        except TimeoutError:
            pass

    await asyncio.gather(*(abort(number) for number in range(60)))
    await until(lambda: server.idle)
    assert (await client_of(server).say("hi"))["text"] == "word " * 50


async def test_a_client_that_receives_nothing_keeps_no_slot_and_is_disconnected(
    start: StartServer, client_of: ClientOf
) -> None:
    calls = []

    def flood(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        calls.append(messages)
        for _ in range(200):
            yield "x" * 100_000

    chat_stream = ChatStream(
        engine=flood, num_of_concurrent_executions=1, max_queue_size=0, limits=Limits(write_timeout=0.2)
    )
    server = await start(chat_stream)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    try:
        writer.write(post_bytes('{"user_input":"hi"}'))
        await until(lambda: calls and server.idle)  # the generation has ended although hardly anything was read
        await until(lambda: not len(chat_stream.disconnects))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(200 * 100_000)
    finally:
        writer.transport.abort()
    assert (await client_of(server).session.get(f"{server.url}/healthz")).status == 200


async def test_a_client_can_disconnect_and_send_again_immediately(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=echo))
    client = client_of(server)
    await client.say("hello")
    for _ in range(5):
        async with client.post(user_input="one two three") as response:
            assert response.status == 200  # and leave without reading
        await client.say("again")
    assert (await client.texts())[-2:] == ["again", "again "]


def turns(chat_stream: ChatStream) -> list[RunningTurn]:
    return chat_stream.running_turns


async def test_a_disconnect_of_a_pipelining_client_frees_the_slot(start: StartServer, stepper: MakeStepper) -> None:
    """aiohttp reads no further while requests are piled up, so it does not see the end of the connection."""
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=0))
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(post_bytes('{"user_input":"hi"}'))
    await until(lambda: engine.calls)
    writer.write(post_bytes('{"user_input":"again"}') * 2_000)
    writer.close()
    await writer.wait_closed()
    await until(lambda: all(turn.ending for turn in turns(server.chat_stream)))
    engine.allow(1)
    await until(lambda: server.idle)


async def test_an_error_of_one_watched_request_does_not_affect_the_others(
    start: StartServer, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1))
    disconnects = server.chat_stream.disconnects
    with disconnects.watch(object(), lambda: None):  # type: ignore[arg-type]
        await until(lambda: not len(disconnects))
        async with sending(server, post_bytes('{"user_input":"hi"}')):
            await until(lambda: engine.calls)
        await until(lambda: server.stopping)
        engine.allow()
        await until(lambda: server.idle)
