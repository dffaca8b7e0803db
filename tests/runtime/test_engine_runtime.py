"""Turns with an asynchronous engine: no threads, and slots that come and go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator

import pytest

from aiochatstream import AsyncEngine, ChatStream, Delta, GenerationParams, Prompt
from aiochatstream.errors import UpstreamUnavailable
from aiochatstream.runtime.admission import MAX_SLOTS
from tests.helpers import ClientOf, StartServer, sse_events, until

pytestmark = pytest.mark.both_loops


class Elastic(AsyncEngine):
    """An asynchronous engine with a capacity that the test sets, whose answers end when the test allows it.

    running, most_running: current and maximum number of answers.
    """

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self.error: UpstreamUnavailable | None = None
        self.events: list[str] = []
        self.running = self.most_running = 0
        self.go_on = asyncio.Event()

    async def load(self, slots: int | None, context_len: int | None) -> None:
        self.events.append(f"load {slots}")

    async def close(self) -> None:
        self.events.append("close")

    def unavailable(self) -> UpstreamUnavailable | None:
        return self.error

    async def generate(self, prompt: Prompt, params: GenerationParams) -> AsyncGenerator[Delta, None]:
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            yield Delta("Hello ", tokens=2, prompt_tokens=7)
            await self.go_on.wait()
            yield Delta("you.", tokens=3, finish_reason="stop")
        finally:
            self.running -= 1
            self.events.append("closed")


async def test_an_async_engine_answers_without_threads_and_counts_its_tokens(
    start: StartServer, client_of: ClientOf
) -> None:
    engine = Elastic(None)
    engine.go_on.set()
    server = await start(ChatStream(engine=engine))
    threads = threading.active_count()
    answers = await asyncio.gather(*(client_of(server).say("Hi") for _ in range(5)))
    assert threading.active_count() <= threads + 2  # those of the prompts
    for answer in answers:
        assert answer["text"] == "Hello you."
        assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (7, 5)
    assert engine.most_running <= 2
    await server.runner.cleanup()
    assert (engine.events[0], engine.events[-1]) == ("load None", "close")


@pytest.mark.parametrize(("slots", "expected"), [(None, [3, 5, 1]), (4, [3, 4, 1])])
async def test_slots_follow_the_capacity_of_an_async_engine(
    start: StartServer, client_of: ClientOf, slots: int | None, expected: list[int]
) -> None:
    engine = Elastic(3)
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=slots, max_queue_size=10))
    asking = [asyncio.create_task(client_of(server).say("Hi")) for _ in range(6)]
    counts = []
    for capacity in (3, 5, 1):
        engine.capacity = capacity
        engine.on_capacity()
        counts.append(server.chat_stream.admission.slots)
        await until(lambda: engine.running == max(counts))
    engine.go_on.set()
    await asyncio.gather(*asking)
    assert counts == expected
    assert engine.most_running == max(expected)


async def test_a_capacity_above_the_maximum_number_of_slots_is_used_in_part(start: StartServer) -> None:
    engine = Elastic(150_000)
    server = await start(ChatStream(engine=engine))
    assert server.chat_stream.admission.slots == MAX_SLOTS
    engine.capacity = 250_000
    engine.on_capacity()
    assert server.chat_stream.admission.slots == MAX_SLOTS


async def test_an_unavailable_engine_refuses_new_requests_and_the_queue_remains(
    start: StartServer, client_of: ClientOf
) -> None:
    engine = Elastic(0)
    server = await start(ChatStream(engine=engine))
    waiting = asyncio.create_task(client_of(server).say("Hi"))
    await until(lambda: any(turn.position for turn in server.chat_stream.running_turns))
    engine.error = UpstreamUnavailable("No server can answer at present.", retry_after=3)
    for path in ("/readyz", "/chat_stream"):
        client = client_of(server)
        request = client.session.get(server.url + path) if path == "/readyz" else client.post(user_input="Hi")
        async with request as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "3")
            assert (await response.json())["error"] == "upstream_unavailable"
    engine.error, engine.capacity = None, 1
    engine.on_capacity()
    engine.go_on.set()
    assert (await waiting)["text"] == "Hello you."
    async with client_of(server).session.get(server.url + "/readyz") as response:
        assert response.status == 200


async def test_a_disconnect_ends_an_async_engine_that_is_silent(start: StartServer, client_of: ClientOf) -> None:
    engine = Elastic(1)
    server = await start(ChatStream(engine=engine))
    async with client_of(server).post(accept="text/event-stream", user_input="Hi") as response:
        async for name, _ in sse_events(response):
            if name == "delta":
                break
    await until(lambda: server.idle)
    assert engine.events[-1] == "closed"
