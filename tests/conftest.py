"""What the tests share: the real small model, loaded once, and real servers on real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import copy
import os
import signal
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
import uvloop
from aiohttp_session import AbstractStorage
from redis.asyncio import Redis
from transformers import AutoModelForCausalLM, AutoTokenizer

from aiochatstream import ChatStream
from aiochatstream.engines.transformers import small_model
from tests.helpers import Client, Server, Stepper, running_server
from tests.redis_server import RedisServer, running_redis

pytest_plugins = ["tests.slow"]

LOOPS: dict[str, Callable[[], Any]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """Return both loops for tests with the marker ``both_loops`` and for tests that select one themselves; one of the
    two, chosen by the name of the test, for all others.
    """
    chosen = item.get_closest_marker("asyncio")
    if item.get_closest_marker("both_loops") or (chosen is not None and "loop_factories" in chosen.kwargs):
        return LOOPS
    name = list(LOOPS)[zlib.crc32(f"{item.path.name}::{item.name}".encode()) % 2]
    return {name: LOOPS[name]}


def pytest_configure(config: pytest.Config) -> None:
    """A shell starts what it leaves in the background with these ignored; so would be what tests start."""
    for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(ignored) is signal.SIG_IGN:
            signal.signal(ignored, signal.default_int_handler if ignored == signal.SIGINT else signal.SIG_DFL)
    # torch's threads wait in busy loops, which costs more than it gains in short answers on few cores
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if os.environ.get("FORBID_SKIPS") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("Skipped tests are forbidden here (FORBID_SKIPS).", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("FORBID_SKIPS") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def model_folder() -> str:
    return small_model()


@pytest.fixture(scope="session")
def untouched_model(model_folder: str) -> Any:
    """The small real model, in float32 so that answers can be compared token by token. No engine is given this one."""
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def model(untouched_model: Any) -> Any:
    """Another of the same weights, for engines to take over."""
    return copy.deepcopy(untouched_model, {id(one): one for one in untouched_model.parameters()})


@pytest.fixture(scope="session")
def tokenizer(model_folder: str) -> Any:
    return AutoTokenizer.from_pretrained(model_folder)


StartServer = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[StartServer]:
    """``await start(chat_stream, storage=..., ...)`` gives a running :class:`Server`, see :func:`running_server`."""
    async with AsyncExitStack() as stack:

        async def start_server(
            chat_stream: ChatStream, storage: AbstractStorage | None = None, **options: Any
        ) -> Server:
            return await stack.enter_async_context(running_server(chat_stream, storage, **options))

        yield start_server


@pytest.fixture
async def client_of() -> AsyncIterator[Callable[[Server], Client]]:
    """``client_of(server)`` gives one more user, with cookies of its own."""
    async with AsyncExitStack() as stack:
        sessions: list[aiohttp.ClientSession] = []

        def make(server: Server) -> Client:
            session = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
            sessions.append(session)
            stack.push_async_callback(session.close)
            return Client(session, server.url)

        yield make


@pytest.fixture
async def stepper(start: StartServer) -> AsyncIterator[Callable[..., Stepper]]:
    """``stepper()`` gives an engine function that steps as the test allows; all may go on when the test is over."""
    made: list[Stepper] = []

    def make(**options: Any) -> Stepper:
        made.append(Stepper(**options))
        return made[-1]

    yield make
    for engine in made:
        engine.allow(10_000)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of it."""
    async with Redis.from_url(redis_server.url) as client:
        yield client
