"""Browsers that keep nothing: without cookies, and with a storage that is full or blocked."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from aiochatstream import ChatStream, MemoryStorage
from tests.page.browser_problems import watch
from tests.page.chat_page import Chat, repeats
from tests.page.conftest import ARGUMENTS, PATIENCE_MS, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

COOKIES = "This page needs cookies."
STORAGE = "This browser cannot store data for this page."


class Forgetting(MemoryStorage):
    """Sets no cookie, as if a browser or a proxy dropped it."""

    async def save_session(self, request: Any, response: Any, session: Any) -> None:
        """Do nothing."""


@pytest_asyncio.fixture(loop_scope="session")
async def blocking(chromium: Browser, tmp_path: Path, problems: list[str]) -> AsyncIterator[Page]:
    """A page of a browser whose user blocks all cookies, which blocks localStorage and Web Locks, too."""
    preferences = tmp_path / "profile" / "Default" / "Preferences"
    preferences.parent.mkdir(parents=True)
    preferences.write_text(json.dumps({"profile": {"default_content_setting_values": {"cookies": 2}}}))
    async with async_playwright() as playwright:
        context = await playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=shutil.which("chromium"), args=ARGUMENTS, locale="en-US"
        )
        context.set_default_timeout(PATIENCE_MS)
        yield context.pages[0]
        await context.close()


async def test_where_cookies_are_blocked_the_screen_is_kept_and_one_is_told_once(
    start: Any, blocking: Page, problems: list[str]
) -> None:
    server = await start(ChatStream(engine=repeats))
    watch(blocking.context, server.url, problems)
    await blocking.goto(server.url)
    assert await blocking.evaluate("document.cookie = 'a=1', document.cookie") == ""
    await talk_without_cookies(Chat(blocking))
    await expect(blocking.locator("#notices").get_by_text(STORAGE)).to_have_count(1)
    await expect(blocking.locator("#conversations > li")).to_have_text(["one"])


async def test_where_the_cookie_is_dropped_on_the_way_the_screen_is_kept_too(start: Any, visit: Visit) -> None:
    await talk_without_cookies(Chat(await visit((await start(ChatStream(engine=repeats), Forgetting())).url)))


async def talk_without_cookies(chat: Chat) -> None:
    await chat.ask("one")
    await chat.ask("two")
    await chat.ask("three")
    await chat.see_turns("one", "one", "two", "two", "three", "three")
    await expect(chat.refusal).to_have_count(0)
    await expect(chat.page.locator("#notices").get_by_text(COOKIES)).to_have_count(1)
    await chat.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await chat.see_turns("one", "one", "two", "two", "three", "three")


async def test_with_a_full_storage_all_works_until_the_page_is_left(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
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
