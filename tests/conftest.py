"""Fixtures of all tests: a small real model, loaded once, servers on real sockets, and both event loops."""

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
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from aiochatstream import ChatStream
from aiochatstream.engines.transformers import small_model
from tests.helpers import Client, ClientOf, MakeStepper, Server, StartServer, Stepper, running_server
from tests.redis_server import RedisServer, running_redis
from tests.small_engine import SmallEngine

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
    # a shell ignores these signals for background jobs, and programs that tests start would inherit that
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    # torch's threads wait in busy loops, which makes short answers slower on few cores
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for programs that tests start


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
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
def untouched_model(model_folder: str) -> PreTrainedModel:
    """Return the small model, in float32 so that answers can be compared token by token. No engine modifies it."""
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def model(untouched_model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy with the same weights, which engines may modify."""
    return copy_of(untouched_model)


@pytest.fixture(scope="session")
def small_engine(untouched_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[SmallEngine]:
    """Yield a loaded engine of the small model, for tests of everything but the start of a server."""
    engine = SmallEngine(copy_of(untouched_model), tokenizer)
    yield engine
    engine.unload()


def copy_of(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


@pytest.fixture(scope="session")
def tokenizer(model_folder: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture
async def start() -> AsyncIterator[StartServer]:
    """Yield a function that starts a server, see :func:`running_server`."""
    async with AsyncExitStack() as stack:

        async def start_server(
            chat_stream: ChatStream, storage: AbstractStorage | None = None, **options: Any
        ) -> Server:
            return await stack.enter_async_context(running_server(chat_stream, storage, **options))

        yield start_server


@pytest.fixture
async def client_of() -> AsyncIterator[ClientOf]:
    """Yield a function that returns a new user of a server."""
    async with AsyncExitStack() as stack:

        def make(server: Server) -> Client:
            session = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
            stack.push_async_callback(session.close)
            return Client(session, server.url)

        yield make


@pytest.fixture
async def stepper(start: StartServer) -> AsyncIterator[MakeStepper]:
    """Yield a function that returns an engine which steps as the test allows, and may finish after the test."""
    engines: list[Stepper] = []

    def make(*, fail_at: int | None = None) -> Stepper:
        engines.append(Stepper(fail_at))
        return engines[-1]

    yield make
    for engine in engines:
        engine.allow(10_000)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """Yield a Redis server of the test."""
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """Yield a client of the test's Redis server."""
    async with Redis.from_url(redis_server.url) as client:
        yield client
