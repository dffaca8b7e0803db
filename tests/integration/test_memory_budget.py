"""Answers that share the memory of an engine: those that do not fit wait in order, and are informed of it."""

from __future__ import annotations

import asyncio
import operator
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import Any

import aiohttp
import pytest

from aiochatstream import (
    AbstractChatPrompt,
    ChatStream,
    Delta,
    FunctionEngine,
    GenerationParams,
    Limits,
    Prompt,
    RecordingEngine,
)
from tests.engines.transformers.tiny_models import BYTES
from tests.helpers import Client, ClientOf, MakeStepper, Server, StartServer, echo, sse_events, until
from tests.web.endpoints.test_status_metrics import figures

pytestmark = pytest.mark.both_loops

BUDGET = 128
BLOCK = 8


class Message(AbstractChatPrompt):
    """The prompt is the message, without the history: a token for each byte."""

    add_special_tokens = False

    def create_prompt(self) -> str:
        return self.message


class BlockEngine(FunctionEngine):
    """An engine with memory for :data:`BUDGET` tokens, in blocks of :data:`BLOCK`.

    needs: tokens that each answer needs, in the order of their starts. used, most_used: tokens of the running answers.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self.needs: list[int] = []
        self.used = self.most_used = 0
        self._lock = threading.Lock()

    def load(self, slots: int, context_len: int | None) -> None:
        self.tokenizer = BYTES
        self.max_context_len = self.kv_cache_tokens = BUDGET

    def tokens_needed(self, prompt_tokens: int, max_new_tokens: int) -> int:
        return -(-(prompt_tokens + max_new_tokens) // BLOCK) * BLOCK

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        needed = len(prompt.token_ids) + params.max_new_tokens
        self._use(needed)
        try:
            with closing(super().generate(prompt, params)) as answer:
                yield from answer
        finally:
            self._use(-needed)

    def _use(self, tokens: int) -> None:
        with self._lock:
            if tokens > 0:
                self.needs.append(tokens)
            self.used += tokens
            self.most_used = max(self.most_used, self.used)


def chat_stream_of(
    engine: FunctionEngine | RecordingEngine, *, slots: int = 4, queue: int = 5, **limits: Any
) -> ChatStream:
    return ChatStream(
        engine=engine,
        num_of_concurrent_executions=slots,
        max_queue_size=queue,
        chat_prompt_clazz=Message,
        params=GenerationParams(max_new_tokens=1),
        limits=Limits(context_len="max", **limits),
    )


Events = dict[str, list[Any]]


async def ask(client: Client, text: str, events_of: Events) -> None:
    """Send a message, and record the events under its first letter, ``queued`` ones as their positions."""
    events = events_of.setdefault(text[0], [])
    async with client.post(accept="text/event-stream", user_input=text) as response:
        async for event, data in sse_events(response):
            events.append(data["position"] if event == "queued" else event)


@pytest.fixture
def asking(client_of: ClientOf) -> Callable[..., Any]:
    """Return a coroutine function that sends messages one after another, each by another user.

    It returns the tasks, and the events of each message by its first letter.
    """

    async def send(server: Server, *texts: str) -> tuple[list[asyncio.Task[None]], Events]:
        tasks, events_of = [], Events()
        for text in texts:
            tasks.append(asyncio.create_task(ask(client_of(server), text, events_of)))
            await until(partial(operator.contains, events_of, text[0]))
            await until(lambda: events_of[text[0]])  # noqa: B023 - awaited here
        return tasks, events_of

    return send


def texts_of(**lengths: int) -> list[str]:
    """Return a text for each letter, of its length."""
    return [letter * length for letter, length in lengths.items()]


END = ["start", "delta", "done"]


async def test_answers_wait_for_memory_in_order_and_receive_their_positions(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, asking: Callable[..., Any]
) -> None:
    function = stepper()
    engine = BlockEngine(function)
    server = await start(chat_stream_of(engine, slots=4))
    # the small answers c and d would fit beside a, but b is before them; e waits for a slot
    tasks, events_of = await asking(server, *texts_of(a=79, b=95, c=7, d=7, e=7))
    assert events_of == {"a": ["start"], "b": [1], "c": [2], "d": [3], "e": [4]}
    await until(lambda: len(function.calls) == 1)
    now = await figures(client_of(server))
    assert (now["num_requests_running"], now["num_requests_waiting"]) == (1, 4)
    assert now["num_requests_waiting_for_memory"] == 3
    async with client_of(server).session.get(f"{server.url}/get_load") as response:
        worker = (await response.json())["chatstream_workers"][0]
    assert (worker["processing"], worker["waiting"], worker["max_processing"]) == (1, 4, 4)
    function.allow()
    await until(lambda: len(function.calls) == 5)  # 96 + 3 * 8 tokens
    function.allow(4)
    await asyncio.gather(*tasks)
    assert events_of == {"a": END, "b": [1, *END], "c": [2, *END], "d": [3, *END], "e": [4, *END]}
    assert function.calls[0][-1]["content"][0] == "a"
    assert engine.most_used == 120
    assert server.idle


async def test_a_long_conversation_gets_all_the_memory_and_short_ones_share_it(
    start: StartServer, stepper: MakeStepper, asking: Callable[..., Any]
) -> None:
    function = stepper()
    engine = BlockEngine(function)
    server = await start(chat_stream_of(engine, slots=16, queue=0))
    letters = "abcdefghijklmnop"
    tasks, events_of = await asking(server, *texts_of(**dict.fromkeys(letters, BLOCK - 1)))
    await until(lambda: function.running == 16)
    assert engine.used == BUDGET
    function.allow(16)
    await asyncio.gather(*tasks)
    tasks, whole = await asking(server, "w" * (BUDGET - 1))
    function.allow()
    await asyncio.gather(*tasks)
    assert all(events == END for events in (*events_of.values(), *whole.values()))


async def test_a_client_that_leaves_while_it_waits_frees_its_place_and_its_claim(
    start: StartServer, stepper: MakeStepper, asking: Callable[..., Any]
) -> None:
    function = stepper()
    server = await start(chat_stream_of(BlockEngine(function)))
    tasks, events_of = await asking(server, *texts_of(a=63, b=127, c=63))
    tasks[1].cancel()
    await until(lambda: "start" in events_of["c"])
    assert (events_of["b"], events_of["c"]) == ([1], [2, "start"])
    function.allow(2)
    await asyncio.gather(tasks[0], tasks[2])
    await until(lambda: server.idle)


async def test_the_wait_for_memory_is_limited(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, asking: Callable[..., Any]
) -> None:
    function = stepper()
    server = await start(chat_stream_of(BlockEngine(function), max_queue_wait=0.01))
    tasks, _ = await asking(server, "a" * 64)
    async with client_of(server).post(user_input="b" * 64) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert (await response.json())["error"] == "too_many_requests"
    assert server.chat_stream.admission.waiting == 0
    function.allow()
    await asyncio.gather(*tasks)
    assert server.idle


async def test_a_drain_refuses_answers_that_wait_for_memory(
    start: StartServer, stepper: MakeStepper, asking: Callable[..., Any]
) -> None:
    function = stepper()
    server = await start(chat_stream_of(BlockEngine(function)))
    tasks, events_of = await asking(server, *texts_of(a=64, b=127, c=7))
    server.chat_stream.drain()
    await asyncio.gather(*tasks[1:])
    assert (events_of["b"], events_of["c"]) == ([1, "error"], [2, "error"])
    function.allow()
    await tasks[0]
    assert events_of["a"] == END
    assert len(function.calls) == 1
    assert server.idle


async def complete(server: Server, **body: Any) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON of a completion."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/completions", json={"model": "", **body}) as response,
    ):
        return response.status, await response.json()


async def test_requests_for_several_answers_share_the_memory(start: StartServer) -> None:
    engine = BlockEngine(echo)
    server = await start(chat_stream_of(engine, slots=3, queue=9))
    prompts = [[5] * 60, [6] * 7, [7] * 127]
    results = await asyncio.gather(*(complete(server, prompt=prompts, n=2, max_tokens=1) for _ in range(3)))
    for status, body in results:
        assert status == 200, body
        assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert len(engine.needs) == 18
    assert engine.most_used <= BUDGET
    assert server.idle


async def test_a_prompt_that_fills_the_context_can_be_read_without_an_answer(start: StartServer) -> None:
    server = await start(chat_stream_of(BlockEngine(echo)))
    status, body = await complete(server, prompt=[5] * BUDGET, max_tokens=0, echo=True)
    assert (status, body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (200, BUDGET, 0)


async def test_what_exceeds_the_whole_memory_is_refused_at_the_door_with_the_numbers(
    start: StartServer, client_of: ClientOf
) -> None:
    engine = BlockEngine(echo)
    server = await start(chat_stream_of(engine))
    async with client_of(server).post(user_input="x" * BUDGET) as response:
        assert response.status == 413
        error = await response.json()
    assert error["error"] == "too_large"
    assert "1 tokens too long. With 1 tokens for the answer, 127 of the 128 tokens" in error["detail"]
    status, body = await complete(server, prompt=[5] * BUDGET)
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert body["error"]["message"].startswith("This model's context has 128 tokens; the prompt has 128")
    assert engine.needs == []
    assert server.idle


async def test_a_strict_server_refuses_an_answer_that_exceeds_the_whole_memory(start: StartServer) -> None:
    chat_stream = ChatStream(
        engine=BlockEngine(echo),
        chat_prompt_clazz=Message,
        params=GenerationParams(max_new_tokens=100),
        limits=Limits(context_len="max", strict_max_tokens=True),
    )
    server = await start(chat_stream)
    status, body = await complete(server, prompt=[5] * 64, max_tokens=65)
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert "the prompt has 64, and the answer needs 65" in body["error"]["message"]
    assert (await complete(server, prompt=[5] * 64, max_tokens=64))[0] == 200


async def test_a_recorded_engine_has_the_same_memory(
    start: StartServer, stepper: MakeStepper, asking: Callable[..., Any], tmp_path: Any
) -> None:
    function = stepper()
    server = await start(chat_stream_of(RecordingEngine(BlockEngine(function), tmp_path)))
    tasks, events_of = await asking(server, *texts_of(a=64, b=56))
    assert events_of == {"a": ["start"], "b": [1]}  # 72 + 64 tokens in blocks
    function.allow(2)
    await asyncio.gather(*tasks)


async def test_an_engine_whose_claim_fails_fails_the_answer_and_frees_the_slot(
    start: StartServer, client_of: ClientOf
) -> None:
    class Broken(BlockEngine):
        def tokens_needed(self, prompt_tokens: int, max_new_tokens: int) -> int:
            raise ZeroDivisionError("the engine broke")

    server = await start(chat_stream_of(Broken(echo)))
    async with client_of(server).post(user_input="hi") as response:
        assert response.status == 500
    assert server.idle
