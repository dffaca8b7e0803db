"""Fixtures of the page's tests: a browser, its users, and servers.

All run on the session's event loop, to which the connection to the browser belongs. Problems that the browser reports
fail the test.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Unpack

import pytest
import pytest_asyncio
from aiohttp_session import AbstractStorage
from playwright.async_api import Browser, Page, async_playwright, expect

from aiochatstream import ChatStream, Delta
from tests.helpers import Server, Stepper, running_server
from tests.page.browser import ARGUMENTS, TIMEOUT_MS, record_problems
from tests.page.engines import DeltaStepper, PiecewiseEngine
from tests.page.fixtures import ContextOptions, MakeDeltaStepper, MakePiecewise, MakeStepper, StartServer, Visit


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is missing: apt-get install chromium fonts-noto-cjk")
    expect.set_options(timeout=TIMEOUT_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
def problems() -> Iterator[list[str]]:
    """Problems that the browser reported; tests remove those that they expect."""
    reported: list[str] = []
    yield reported
    assert reported == []


@pytest_asyncio.fixture(loop_scope="session")
async def visit(chromium: Browser, problems: list[str]) -> AsyncIterator[Visit]:
    async with AsyncExitStack() as stack:

        async def open_page(url: str, **options: Unpack[ContextOptions]) -> Page:
            options.setdefault("locale", "en-US")
            context = await chromium.new_context(**options)
            stack.push_async_callback(context.close)
            context.set_default_timeout(TIMEOUT_MS)
            record_problems(context, url, problems)
            page = await context.new_page()
            await page.goto(url)
            return page

        yield open_page


@pytest_asyncio.fixture(loop_scope="session")
async def start() -> AsyncIterator[StartServer]:
    async with AsyncExitStack() as stack:

        async def start_server(chat_stream: ChatStream, storage: AbstractStorage | None = None) -> Server:
            return await stack.enter_async_context(running_server(chat_stream, storage))

        yield start_server


@pytest.fixture
def stepper(start: StartServer) -> Iterator[MakeStepper]:
    engines: list[Stepper] = []

    def make(*, fail_at: int | None = None) -> Stepper:
        engines.append(Stepper(fail_at=fail_at))
        return engines[-1]

    yield make
    for engine in engines:
        engine.allow(10_000)


@pytest.fixture
def piecewise(start: StartServer) -> Iterator[MakePiecewise]:
    engines: list[PiecewiseEngine] = []

    def make(*pieces: str) -> PiecewiseEngine:
        engines.append(PiecewiseEngine(*pieces))
        return engines[-1]

    yield make
    for engine in engines:
        engine.next(1000)


@pytest.fixture
def delta_stepper(start: StartServer) -> Iterator[MakeDeltaStepper]:
    engines: list[DeltaStepper] = []

    def make(*deltas: Delta) -> DeltaStepper:
        engines.append(DeltaStepper(*deltas))
        return engines[-1]

    yield make
    for engine in engines:
        engine.next(1000)
