"""Tests with gunicorn and both of aiohttp's workers, as processes started in the project's root."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from platformdirs import user_cache_path

from tests.helpers import PATIENCE, Client, sse_events
from tests.processes import PYTHON, Process, ask, ask_when_listening, free_port, running
from tests.redis_server import RedisServer

WORKERS = ["aiohttp.GunicornWebWorker", "aiohttp.GunicornUVLoopWebWorker"]

QUESTION = {"user_input": "What is the capital of France?", "params": {"temperature": 0, "max_new_tokens": 24}}

StartGunicorn = Callable[..., tuple[Process, str]]


@pytest.fixture(params=WORKERS)
def gunicorn(request: pytest.FixtureRequest, tmp_path: Path, model_folder: str) -> Iterator[StartGunicorn]:
    """Yield a function that starts gunicorn, and returns the process and its URL.

    It is forked, unless a test demands the imports, for the first class of workers.
    """
    (tmp_path / "home").mkdir()
    env = {
        "HOME": str(tmp_path / "home"),  # contains gunicorn's control socket
        "XDG_RUNTIME_DIR": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(user_cache_path()),
    }
    with ExitStack() as stack:

        def start(app: str, *options: str, with_imports: bool = False) -> tuple[Process, str]:
            forked = not with_imports or request.param != WORKERS[0]
            address = f"127.0.0.1:{free_port()}"
            command = [PYTHON, "-m", "gunicorn", app, "--bind", address, "--worker-class", request.param, *options]
            process = stack.enter_context(running(command, tmp_path / "gunicorn", env=env, forked=forked))
            return process, f"http://{address}"

        yield start


def exit_code_after_sigterm(process: Process) -> int:
    exit_code = process.end()
    assert "Traceback" not in process.err
    assert "[ERROR]" not in process.err
    return exit_code


def worker_pids(process: Process) -> list[int]:
    return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", process.err)]


def user(url: str, talk: Callable[[Client], Awaitable[None]]) -> None:
    """Run ``talk`` with a user of the server. The tests are synchronous, because the client's loop does not matter."""

    async def run() -> None:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            await talk(Client(session, url))

    asyncio.run(run())


def test_the_example_starts_and_finishes_its_answers_on_sigterm(gunicorn: StartGunicorn) -> None:
    process, url = gunicorn("examples.simple_server:create_app", with_imports=True)

    def answer() -> str | None:
        reply = ask(f"{url}/chat_stream", QUESTION)
        if reply.status == 503:
            assert reply.json["error"] == "starting"
            assert int(reply.headers["Retry-After"]) >= 1
            return None
        assert reply.status == 200, reply
        return reply.text

    ask_when_listening(process, f"{url}/chat_stream", QUESTION)
    assert "Paris" in process.wait_for(answer, "answer")

    long: dict[str, Any] = {"user_input": "Count to one hundred.", "params": {"max_new_tokens": 24, "ignore_eos": True}}

    async def talk(client: Client) -> None:
        async with (
            client.post(accept="text/event-stream", **long) as events_response,
            client.post(accept="text/plain", **long, conversation="another") as text_response,
        ):
            assert (events_response.status, text_response.status) == (200, 200)
            text = await text_response.content.readany()
            events: AsyncIterator[tuple[str, dict[str, Any]]] = sse_events(events_response)
            seen = [await anext(events)]
            while seen[-1][0] != "delta":
                seen.append(await anext(events))
            process.popen.terminate()
            before = len(seen)
            async for event in events:
                seen.append(event)
            text += await text_response.read()  # raises an error if the end of the body is missing
        name, done = seen[-1]
        assert name == "done"
        assert done["finish_reason"] == "length"
        assert done["usage"]["completion_tokens"] == 24
        assert len(seen) - before > 10, "the answer was over before the signal came"
        assert text

    user(url, talk)
    assert exit_code_after_sigterm(process) == 0
    assert "Handling signal: term" in process.err


SLOW_TO_LOAD = """
import os
import time

import aiohttp_session
from aiohttp import web
from transformers import AutoModelForCausalLM, AutoTokenizer

from aiochatstream import ChatStream, MemoryStorage
from aiochatstream.engines.transformers import small_model


def model():
    while not os.path.exists({go!r}):
        time.sleep(0.05)
    return AutoModelForCausalLM.from_pretrained(small_model(), dtype="float32")


def tokenizer():
    return AutoTokenizer.from_pretrained(small_model())


async def create_app():
    chat_stream = ChatStream(model=model, tokenizer=tokenizer, name=str(os.getpid()))
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    return app
"""


@pytest.mark.parametrize("gunicorn", WORKERS[:1], indirect=True)  # the other worker class is a subclass
def test_a_worker_survives_a_model_load_longer_than_gunicorns_timeout(gunicorn: StartGunicorn, tmp_path: Path) -> None:
    timeout = 3
    (tmp_path / "slow_to_load.py").write_text(SLOW_TO_LOAD.format(go=str(tmp_path / "go")))
    # --preload, because importing torch may take longer than the timeout, and precedes the worker's first heartbeat
    options = ["--preload", "--timeout", str(timeout), "--pythonpath", str(tmp_path)]
    process, url = gunicorn("slow_to_load:create_app", *options)
    assert ask_when_listening(process, f"{url}/readyz").json["error"] == "starting"
    worker = ask(f"{url}/get_load").json["chatstream_workers"][0]["name"]

    past_the_timeout = time.monotonic() + timeout + 2  # gunicorn looks once a second
    while time.monotonic() < past_the_timeout:
        reply = ask(f"{url}/readyz")
        assert (reply.status, reply.json["error"]) == (503, "starting")
        time.sleep(0.2)
    (tmp_path / "go").touch()
    process.wait_for(lambda: ask(f"{url}/readyz").status == 200, "readiness")

    assert "Paris" in ask(f"{url}/chat_stream", QUESTION).text
    assert ask(f"{url}/get_load").json["chatstream_workers"][0]["name"] == worker
    assert worker_pids(process) == [int(worker)]
    assert "WORKER TIMEOUT" not in process.err
    assert exit_code_after_sigterm(process) == 0


ENDLESS = """
import time

import aiohttp_session
from aiohttp import web

from aiochatstream import ChatStream, GenerationParams, Limits, MemoryStorage


def words(messages, params):
    while True:
        time.sleep(0.01)
        yield "word "


async def create_app():
    chat_stream = ChatStream(
        engine=words,
        params=GenerationParams(max_new_tokens=1_000_000),
        limits=Limits(context_len=2_000_000, shutdown_timeout=1.0),
    )
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    return app
"""


def test_clients_detect_answers_cut_at_the_shutdown_timeout(gunicorn: StartGunicorn, tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    process, url = gunicorn("endless:create_app", "--pythonpath", str(tmp_path))
    ask_when_listening(process, f"{url}/readyz")

    async def talk(client: Client) -> None:
        async with (
            client.post(accept="text/plain", user_input="Talk!") as text_response,
            client.post(accept="text/event-stream", user_input="Talk!", conversation="another") as events_response,
        ):
            assert (text_response.status, events_response.status) == (200, 200)
            assert await text_response.content.readany()
            assert text_response.headers["Transfer-Encoding"] == "chunked"
            process.popen.terminate()
            with pytest.raises(aiohttp.ClientError):
                await text_response.read()
            names = [(name, data) async for name, data in sse_events(events_response)]
        assert "done" not in dict(names)
        assert names[-1][0] == "error"
        assert names[-1][1]["error"]["error"] == "draining"

    user(url, talk)
    assert exit_code_after_sigterm(process) == 0


LOADS_FOR_EVER = """
import threading

import aiohttp_session
from aiohttp import web

from aiochatstream import ChatStream, Engine, MemoryStorage


class Downloading(Engine):
    loads_slowly = True

    def load(self, slots, context_len):
        threading.Event().wait()

    def generate(self, prompt, params):
        raise NotImplementedError


async def create_app():
    chat_stream = ChatStream(engine=Downloading())
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    return app
"""


def test_sigterm_ends_a_process_that_is_loading_its_model_immediately(gunicorn: StartGunicorn, tmp_path: Path) -> None:
    (tmp_path / "loads_for_ever.py").write_text(LOADS_FOR_EVER)
    options = ["--graceful-timeout", "300", "--pythonpath", str(tmp_path)]
    process, url = gunicorn("loads_for_ever:create_app", *options)
    assert ask_when_listening(process, f"{url}/readyz").json["error"] == "starting"
    assert exit_code_after_sigterm(process) == 0


def test_two_workers_share_a_conversation_and_stop_each_others_answers(
    gunicorn: StartGunicorn, redis_server: RedisServer
) -> None:
    options = ["--workers", "2", "--keep-alive", "60", "--env", f"REDIS_URL={redis_server.url}"]
    process, url = gunicorn("examples.redis_conversations:create_app", *options)
    process.wait_for(lambda: len(worker_pids(process)) == 2, "second worker")
    ask_when_listening(process, f"{url}/readyz")

    async def talk() -> None:
        async with AsyncExitStack() as stack:
            first, other = await at_each_worker(url, stack)
            texts = ["one", "two", "three", "four"]
            for place, text in enumerate(texts):
                assert (await (first, other)[place % 2].say(text))["text"] == text
            assert await first.texts() == await other.texts() == [text for text in texts for _ in range(2)]

            async with first.post(accept="text/event-stream", user_input="word " * 2000) as response:
                events = sse_events(response)
                assert [(await anext(events))[0] for _ in range(2)] == ["start", "delta"]
                async with other.post(user_input="too soon") as refused:
                    assert (refused.status, (await refused.json())["error"]) == (409, "conversation_busy")
                async with other.post("/chat_stream/stop") as stopped:
                    assert stopped.status == 200, await stopped.text()
                    message_id = (await stopped.json())["message_id"]
                *_, (name, done) = [event async for event in events]
            assert (name, done["finish_reason"], done["message_id"]) == ("done", "cancelled", message_id)
            last = (await other.history())[-1]
            assert (last["state"], last["message_id"]) == ("interrupted", message_id)
            assert (await other.say("five"))["text"] == "five"

    asyncio.run(talk())
    assert exit_code_after_sigterm(process) == 0


async def at_each_worker(url: str, stack: AsyncExitStack) -> list[Client]:
    """Return a user's clients, with a persistent connection to each of two workers."""
    cookies = aiohttp.CookieJar(unsafe=True)
    clients: dict[str, Client] = {}
    async with asyncio.timeout(PATIENCE):
        while len(clients) < 2:
            session = aiohttp.ClientSession(cookie_jar=cookies, connector=aiohttp.TCPConnector(limit=1))
            await stack.enter_async_context(session)
            async with session.get(f"{url}/get_load") as response:
                clients.setdefault((await response.json())["chatstream_workers"][0]["name"], Client(session, url))
    return list(clients.values())
