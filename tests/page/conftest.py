"""What the tests of the page share: one real browser, people with a profile of their own in it, and servers.

All of it lives on one event loop for the session, because the connection to the browser does. Whatever the browser
complains of on the way fails the test.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from aiohttp_session import AbstractStorage
from playwright.async_api import Browser, Page, async_playwright, expect

from aiochatstream import ChatStream
from tests.helpers import Server, Stepper, running_server
from tests.nginx_server import NAME
from tests.page.browser_problems import watch
from tests.page.chat_page import PiecewiseEngine

ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",  # Chromium's own wants rights that containers do not give
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {NAME} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]

PATIENCE_MS = 10_000
"""Milliseconds until a test gives up on something that should show at once."""

Visit = Callable[..., Awaitable[Page]]
Piecewise = Callable[..., PiecewiseEngine]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is missing: apt-get install chromium fonts-noto-cjk")
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
def problems() -> Iterator[list[str]]:
    """What the browser complained of; a test that means it takes it out."""
    found: list[str] = []
    yield found
    assert found == []


@pytest_asyncio.fixture(loop_scope="session")
async def visit(chromium: Browser, problems: list[str]) -> AsyncIterator[Visit]:
    """``await visit(url)`` gives the page to one more person; ``options`` are those of a browser context."""
    async with AsyncExitStack() as stack:

        async def open_page(url: str, **options: Any) -> Page:
            context = await chromium.new_context(**{"locale": "en-US", **options})
            stack.push_async_callback(context.close)
            context.set_default_timeout(PATIENCE_MS)
            watch(context, url, problems)
            page = await context.new_page()
            await page.goto(url)
            return page

        yield open_page


@pytest_asyncio.fixture(loop_scope="session")
async def start() -> AsyncIterator[Callable[..., Awaitable[Server]]]:
    """``await start(chat_stream)`` gives a running server, on this event loop."""
    async with AsyncExitStack() as stack:

        async def start_server(chat_stream: ChatStream, storage: AbstractStorage | None = None) -> Server:
            return await stack.enter_async_context(running_server(chat_stream, storage))

        yield start_server


@pytest.fixture
def stepper(start: Any) -> Iterator[Callable[..., Stepper]]:
    """As for all tests: engines that step as the test allows; all may go on when the test is over."""
    made: list[Stepper] = []

    def make(**options: Any) -> Stepper:
        made.append(Stepper(**options))
        return made[-1]

    yield make
    for engine in made:
        engine.allow(10_000)


@pytest.fixture
def piecewise(start: Any) -> Iterator[Piecewise]:
    """``piecewise("one", "two")`` returns an engine that yields each piece on request, and the rest after the test,
    so that the server does not wait for it.
    """
    made: list[PiecewiseEngine] = []

    def make(*pieces: str) -> PiecewiseEngine:
        made.append(PiecewiseEngine(*pieces))
        return made[-1]

    yield make
    for engine in made:
        engine.next(1000)
