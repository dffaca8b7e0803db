"""Tests of promise 6: a shutdown ends in time, waits for running answers, and saves their text."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp_session
import pytest
from aiohttp import ClientPayloadError, web
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aiochatstream import (
    ChatPrompt,
    ChatStream,
    Conversation,
    Delta,
    Engine,
    GenerationParams,
    Limits,
    MemoryConversationStore,
    MemoryStorage,
    Prompt,
)
from tests.helpers import PATIENCE, Client, ClientOf, MakeStepper, Server, StartServer, echo, sse_events, until
from tests.processes import PYTHON, ask, ask_when_listening, free_port, running

pytestmark = pytest.mark.both_loops


StartLoading = Callable[["SlowToLoad"], Awaitable[Server]]


class RecordingStore(MemoryConversationStore):
    """A store that records the conversations it has saved."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[Conversation] = []

    async def save(self, user_id: str, name: str, conversation: Conversation, *, expected_number: int) -> None:
        await super().save(user_id, name, conversation, expected_number=expected_number)
        self.saved.append(conversation)


async def get(client: Client, path: str) -> tuple[int, Any, Mapping[str, str]]:
    async with client.session.get(client.url + path) as response:
        return response.status, await response.json(), response.headers


async def test_draining_refuses_new_and_waiting_requests_and_finishes_running_ones(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(engine=engine, num_of_concurrent_executions=1, params=GenerationParams(max_new_tokens=2))
    )
    running = asyncio.create_task(client_of(server).say("first"))
    await until(lambda: engine.calls)
    waiting = asyncio.create_task(client_of(server).say("second"))
    await until(lambda: server.chat_stream.admission.waiting == 1)
    server.chat_stream.drain()
    with pytest.raises(AssertionError, match="draining"):
        await waiting
    async with client_of(server).post(user_input="third") as response:
        assert response.status == 503
        assert (await response.json())["error"] == "draining"
        assert int(response.headers["Retry-After"]) >= 1
    for path in ("/readyz", "/health"):
        status, body, headers = await get(client_of(server), path)
        assert (status, body["error"], "Retry-After" in headers) == (503, "draining", True)
    assert (await get(client_of(server), "/healthz"))[0] == 200
    engine.allow(2)
    assert (await running)["text"] == "1 2 "


async def test_a_shutdown_waits_for_the_running_answer(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)))
    running = asyncio.create_task(client_of(server).say("first"))
    await until(lambda: engine.calls)
    ending = asyncio.create_task(server.runner.cleanup())
    await until(lambda: server.chat_stream.state == "draining")
    engine.allow(2)
    assert (await running)["text"] == "1 2 "
    await ending
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("aiochatstream-generate")]


@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
async def test_answers_cut_at_the_shutdown_timeout_are_detectable_and_saved(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, accept: str
) -> None:
    engine, store = stepper(), RecordingStore()
    chat_stream = ChatStream(engine=engine, limits=Limits(shutdown_timeout=0.05), conversation_store=store)
    server = await start(chat_stream)
    async with client_of(server).post(accept="text/event-stream", user_input="cookie") as response:
        assert response.status == 200
    await until(lambda: any(turn.ending for turn in chat_stream.running_turns))
    engine.allow(1)
    await until(lambda: server.idle)
    store.saved.clear()

    async def ask() -> Any:
        async with client_of(server).post(accept=accept, user_input="first") as response:
            if accept == "text/event-stream":
                return [event async for event in sse_events(response)][-1]
            if accept == "text/plain":
                with pytest.raises(ClientPayloadError):
                    await response.read()
                return None
            return response.status, await response.json()

    asking = asyncio.create_task(ask())
    engine.allow(1)
    await until(lambda: any(turn.text == "1 " for turn in chat_stream.running_turns))
    ending = asyncio.create_task(server.runner.cleanup())
    await until(lambda: all(turn.ending for turn in chat_stream.running_turns))
    engine.allow(1)
    outcome = await asking
    await ending
    if accept == "text/event-stream":
        assert outcome[0] == "error"
        assert outcome[1]["error"]["error"] == "draining"
    elif accept == "application/json":
        assert outcome[0] == 503
        assert outcome[1]["error"] == "draining"
    (conversation,) = store.saved
    assert [(turn.user, turn.answer, turn.state) for turn in conversation.turns] == [("first", "1 2 ", "interrupted")]


class SlowToLoad(Engine):
    """An engine whose load() blocks until the test continues it."""

    loads_slowly = True

    def __init__(self, error: BaseException | None = None) -> None:
        self.may_load = threading.Event()
        self.error = error

    def load(self, slots: int, context_len: int | None) -> None:
        self.may_load.wait()
        if self.error is not None:
            raise self.error

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        yield Delta("hello", (1,), "stop")


@pytest.fixture
async def loading(client_of: ClientOf) -> AsyncIterator[StartLoading]:
    """Yield a function that starts a server whose engine is still loading."""
    runners = []

    async def start(engine: SlowToLoad) -> Server:
        chat_stream = ChatStream(engine=engine)
        app = web.Application()
        aiohttp_session.setup(app, MemoryStorage())
        app.add_routes(chat_stream.routes())
        chat_stream.setup(app)
        runner = web.AppRunner(app)
        runners.append((engine, runner))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return Server(chat_stream, runner, f"http://127.0.0.1:{runner.addresses[0][1]}")

    yield start
    for engine, runner in runners:
        engine.may_load.set()
        await runner.cleanup()


async def test_requests_get_503_while_the_model_loads(loading: StartLoading, client_of: ClientOf) -> None:
    engine = SlowToLoad()
    server = await loading(engine)
    client = client_of(server)
    for path in ("/healthz", "/get_load"):
        assert (await get(client, path))[0] == 200
    status, body, headers = await get(client, "/readyz")
    assert (status, body["error"], int(headers["Retry-After"]) >= 1) == (503, "starting", True)
    async with client.post(user_input="hi") as response:
        assert response.status == 503
        assert (await response.json())["error"] == "starting"
    engine.may_load.set()
    await server.chat_stream.wait_ready()
    assert (await get(client, "/readyz"))[0] == 200
    assert (await client.say("hi"))["text"] == "hello"


async def test_a_failed_load_is_logged_and_requests_are_refused(
    loading: StartLoading, client_of: ClientOf, caplog: pytest.LogCaptureFixture
) -> None:
    engine = SlowToLoad(OSError("the file is gone"))
    server = await loading(engine)
    engine.may_load.set()
    await until(lambda: "the file is gone" in caplog.text)
    with pytest.raises(OSError, match="the file is gone"):
        await server.chat_stream.wait_ready()
    async with client_of(server).post(user_input="hi") as response:
        assert response.status == 503
        assert "the file is gone" not in await response.text()


async def test_an_engine_that_loads_immediately_fails_at_startup_with_its_own_error(start: StartServer) -> None:
    class Broken(SlowToLoad):
        loads_slowly = False

    engine = Broken(ValueError("not a model"))
    engine.may_load.set()
    with pytest.raises(ValueError, match="not a model"):
        await start(ChatStream(engine=engine))


async def test_two_apps_in_one_process_are_independent(start: StartServer, client_of: ClientOf) -> None:
    first, second = await start(ChatStream(engine=echo)), await start(ChatStream(engine=echo))
    await first.runner.cleanup()
    assert (await client_of(second).say("still here"))["text"] == "still here "


async def test_a_shutdown_refuses_a_request_whose_prompt_is_being_built(
    start: StartServer, client_of: ClientOf, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    making, go_on = threading.Event(), threading.Event()

    class Slow(ChatPrompt):
        def encode(self) -> list[int]:
            if self.message != "Hello":  # the prompt of the check at startup
                making.set()
                go_on.wait()
            return super().encode()

    server = await start(ChatStream(model=model, tokenizer=tokenizer, chat_prompt_clazz=Slow))
    asking = asyncio.create_task(client_of(server).say("hi"))
    await until(making.is_set)
    server.chat_stream.drain()
    go_on.set()
    with pytest.raises(AssertionError, match="draining"):
        await asking
    assert server.idle


async def test_a_chat_stream_can_be_started_again(start: StartServer, client_of: ClientOf) -> None:
    chat_stream = ChatStream(engine=echo)
    for _ in range(2):
        server = await start(chat_stream)
        assert (await client_of(server).say("hello"))["text"] == "hello "
        await server.runner.cleanup()


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(3), KeyboardInterrupt()])
async def test_any_exception_of_a_loader_is_a_failed_load(loading: StartLoading, error: BaseException) -> None:
    engine = SlowToLoad(error)
    server = await loading(engine)
    engine.may_load.set()
    with pytest.raises(RuntimeError, match="Loading raised"):
        await server.chat_stream.wait_ready()
    assert server.chat_stream.state == "failed"


class Stuck:
    """An engine that yields two words, and blocks in its third step."""

    def __init__(self) -> None:
        self.reached, self.release = threading.Event(), threading.Event()

    def __call__(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        yield "one "
        yield "two "
        self.reached.set()
        self.release.wait()
        yield "three "


async def test_a_stuck_engine_loses_no_text_and_does_not_delay_the_shutdown(
    start: StartServer, client_of: ClientOf, caplog: pytest.LogCaptureFixture
) -> None:
    engine, store = Stuck(), RecordingStore()
    server = await start(ChatStream(engine=engine, conversation_store=store, limits=Limits(shutdown_timeout=0.01)))
    client = client_of(server)
    async with client.post(accept="text/event-stream", user_input="hello") as response:
        assert response.status == 200
        await until(engine.reached.is_set)
        await server.runner.cleanup()
    assert "1 answers do not stop: the engine is stuck in a step." in caplog.text
    saved = [(turn.answer, turn.state) for conversation in store.saved for turn in conversation.turns]
    assert saved == [("one two ", "interrupted")]
    assert server.chat_stream.running_turns == []
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("turn ")]
    engine.release.set()  # further text must be ignored
    for thread in threading.enumerate():
        if thread.name.startswith("aiochatstream-generate"):
            await asyncio.to_thread(thread.join)
    assert len(store.saved) == 1


PROGRAM = """
import sys, time
import aiohttp_session
from aiohttp import web
from aiochatstream import AbstractChatPrompt, ChatStream, Limits, MemoryConversationStore, MemoryStorage

class Store(MemoryConversationStore):
    async def save(self, user_id, name, conversation, **more):
        await super().save(user_id, name, conversation, **more)
        print("saved", conversation.turns[-1].answer, flush=True)

def stuck(messages, params):
    yield "one "
    print("stuck", flush=True)
    time.sleep(1000)

class StuckPrompt(AbstractChatPrompt):
    def get_messages(self):
        if self.message == "stuck prompt":
            print("stuck", flush=True)
            time.sleep(1000)
        return super().get_messages()

    def create_prompt(self):
        return ""

app = web.Application()
aiohttp_session.setup(app, MemoryStorage())
chat_stream = ChatStream(
    engine=stuck, chat_prompt_clazz=StuckPrompt, conversation_store=Store(), limits=Limits(shutdown_timeout=0.1)
)
app.add_routes(chat_stream.routes())
chat_stream.setup(app)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, shutdown_timeout=0.1)
"""


@pytest.mark.parametrize(("message", "saved"), [("hello", "saved one"), ("stuck prompt", "")])
def test_a_process_with_a_stuck_engine_or_prompt_ends_in_time(tmp_path: Path, message: str, saved: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running([PYTHON, "-c", PROGRAM, str(port)], tmp_path, forked=True) as process:
        assert ask_when_listening(process, f"{url}/healthz").status == 200
        with ThreadPoolExecutor(1) as threads:
            asking = threads.submit(ask, f"{url}/chat_stream", {"user_input": message})
            process.wait_for(lambda: "stuck" in process.out, "stuck engine")
            assert process.end() == 0, process.output
            assert saved in process.out
            assert isinstance(asking.exception(PATIENCE), Exception) or asking.result().status == 503
