"""Fixtures of the page's tests: a browser, its users, and servers.

All run on the session's event loop, to which the connection to the browser belongs. Problems that the browser reports
fail the test.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Unpack
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp_session import AbstractStorage
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from aiochatstream import ChatStream, Delta
from tests.helpers import Server, Stepper, running_server, serving
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
        browser = await playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, "--process-per-site"])
        yield browser
        await browser.close()


@pytest.fixture
def problems() -> Iterator[list[str]]:
    """Problems that the browser reported; tests remove those that they expect."""
    reported: list[str] = []
    yield reported
    assert reported == []


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def first_user(chromium: Browser) -> AsyncIterator[BrowserContext]:
    """Yield the context of the first user of each test. Its first page keeps the process of the site running, because
    starting a process and a context takes a second.
    """
    context = await chromium.new_context(locale="en-US")
    context.set_default_timeout(TIMEOUT_MS)
    async with serving(web.Application()) as url:
        await (await context.new_page()).goto(url)
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def visit(chromium: Browser, first_user: BrowserContext, problems: list[str]) -> AsyncIterator[Visit]:
    async with AsyncExitStack() as stack:

        async def open_page(url: str, *, clock: bool = False, **options: Unpack[ContextOptions]) -> Page:
            if clock or options or len(first_user.pages) > 1:
                options.setdefault("locale", "en-US")
                context = await chromium.new_context(**options)
                stack.push_async_callback(context.close)
                context.set_default_timeout(TIMEOUT_MS)
            else:
                context = first_user
                stack.push_async_callback(forget, first_user, url)
            stack.callback(record_problems(context, url, problems))
            if clock:
                await context.clock.install()
            page = await context.new_page()
            await page.goto(url)
            return page

        yield open_page


async def forget(context: BrowserContext, url: str) -> None:
    """Close all pages except the first one, and delete what they have stored."""
    first, *pages = context.pages
    for page in pages:
        await page.close()
    await context.clear_cookies()
    devtools = await context.new_cdp_session(first)
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
    await devtools.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
    await devtools.detach()


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
