"""The docs page in a browser."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream
from tests.helpers import echo
from tests.page.fixtures import StartServer, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


async def test_docs_page_fits_a_phone_and_type_links_open_their_section(start: StartServer, visit: Visit) -> None:
    server = await start(ChatStream(engine=echo))
    page = await visit(f"{server.url}/docs", viewport={"width": 390, "height": 800})
    await page.locator("summary", has_text="POST /chat_stream").first.focus()
    await page.keyboard.press("Enter")
    section = page.locator("#ChatRequest")
    await expect(section).to_be_hidden()
    await page.get_by_role("link", name="ChatRequest").click()
    await expect(section.get_by_text("user_input")).to_be_in_viewport()
    await page.evaluate("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
    for width in (390, 700):
        await page.set_viewport_size({"width": width, "height": 800})
        assert await page.evaluate("document.documentElement.scrollWidth") == width
