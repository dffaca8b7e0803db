"""The page of the endpoints, as people see it."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream
from tests.helpers import echo

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


async def test_it_fits_a_phone_and_a_link_to_a_type_unfolds_it(start: Any, visit: Any) -> None:
    server = await start(ChatStream(engine=echo))
    page = await visit(f"{server.url}/docs", viewport={"width": 390, "height": 800})
    await page.locator("summary", has_text="POST /chat_stream").first.focus()
    await page.keyboard.press("Enter")
    told = page.locator("#ChatRequest")
    await expect(told).to_be_hidden()
    await page.get_by_role("link", name="ChatRequest").click()
    await expect(told.get_by_text("user_input")).to_be_in_viewport()
    await page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert await page.evaluate("document.documentElement.scrollWidth") == 390
