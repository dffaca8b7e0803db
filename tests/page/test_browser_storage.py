"""Browsers without cookies, and with full or blocked storage."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp_session import Session
from playwright.async_api import Browser, Page, async_playwright, expect

from aiochatstream import ChatStream, MemoryStorage
from tests.page.browser import ARGUMENTS, TIMEOUT_MS, record_problems
from tests.page.chat_page import ChatPage
from tests.page.engines import echo_chunks
from tests.page.fixtures import StartServer, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

COOKIES = "This page needs cookies."
STORAGE = "This browser cannot store data for this page."


class CookielessStorage(MemoryStorage):
    """Sets no cookie, as if a browser or a proxy dropped it."""

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Do nothing."""


@pytest_asyncio.fixture(loop_scope="session")
async def blocking_page(chromium: Browser, tmp_path: Path, problems: list[str]) -> AsyncIterator[Page]:
    """A page in a browser that blocks all cookies, and therefore also localStorage and Web Locks."""
    preferences = tmp_path / "profile" / "Default" / "Preferences"
    preferences.parent.mkdir(parents=True)
    preferences.write_text(json.dumps({"profile": {"default_content_setting_values": {"cookies": 2}}}))
    async with async_playwright() as playwright:
        context = await playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=shutil.which("chromium"), args=ARGUMENTS, locale="en-US"
        )
        context.set_default_timeout(TIMEOUT_MS)
        yield context.pages[0]
        await context.close()


async def test_blocked_cookies_keep_the_turns_and_show_one_notice(
    start: StartServer, blocking_page: Page, problems: list[str]
) -> None:
    server = await start(ChatStream(engine=echo_chunks))
    record_problems(blocking_page.context, server.url, problems)
    await blocking_page.goto(server.url)
    assert await blocking_page.evaluate("document.cookie = 'a=1', document.cookie") == ""
    await talk_without_cookies(ChatPage(blocking_page))
    await expect(blocking_page.locator("#notices").get_by_text(STORAGE)).to_have_count(1)
    await expect(blocking_page.locator("#conversations > li")).to_have_text(["one"])


async def test_dropped_cookies_keep_the_turns_on_the_screen(start: StartServer, visit: Visit) -> None:
    await talk_without_cookies(
        ChatPage(await visit((await start(ChatStream(engine=echo_chunks), CookielessStorage())).url))
    )


async def talk_without_cookies(chat: ChatPage) -> None:
    await chat.ask("one")
    await chat.ask("two")
    await chat.ask("three")
    await chat.expect_turns("one", "one", "two", "two", "three", "three")
    await expect(chat.refusal).to_have_count(0)
    await expect(chat.page.locator("#notices").get_by_text(COOKIES)).to_have_count(1)
    await chat.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await chat.expect_turns("one", "one", "two", "two", "three", "three")


async def test_full_storage_keeps_data_in_memory(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    page = chat.page
    await page.evaluate(
        """() => {
          for (let size = 1 << 22; size >= 1; size >>= 1) {
            try {
              for (;;) localStorage.setItem(`fill ${Math.random()}`, "x".repeat(size));
            } catch {}
          }
        }"""
    )
    await chat.ask("first")
    await expect(page.locator("#notices").get_by_text(STORAGE)).to_have_count(1)
    await chat.write("draft of the first")
    await page.locator("#new-chat").click()
    await expect(chat.message).to_have_value("")
    await chat.ask("second")
    await expect(page.locator("#conversations > li")).to_have_text(["second", "first"])
    await page.locator("#conversations").get_by_text("first").click()
    await expect(chat.message).to_have_value("draft of the first")
    await page.locator("#locale").select_option("ja")
    await expect(page.locator("#new-chat")).to_have_text("新しい会話")
    await expect(page.locator("#notices").get_by_text(STORAGE)).to_have_count(1)
