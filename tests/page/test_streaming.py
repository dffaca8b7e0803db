"""An answer on the page while it grows: what stands there stays, and what is half-open does not show."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream
from tests.helpers import until
from tests.page.chat_page import Chat
from tests.page.conftest import Piecewise, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


async def test_blocks_that_are_whole_stay_the_same_nodes_while_the_next_one_grows(
    start: Any, visit: Visit, piecewise: Piecewise
) -> None:
    engine = piecewise("The first *paragraph*.\n\nThe ", "second, with **bo", "ld** text.\n\n- one\n", "- two\n")
    chat = Chat(await visit((await start(ChatStream(engine=engine))).url))
    await chat.send("Go")
    engine.next()
    await expect(chat.answer()).to_contain_text("The")
    await chat.answer().locator("p").first.evaluate("node => { window.first = node; }")
    engine.next()
    await expect(chat.answer().locator("strong")).to_have_text("bo")
    engine.next()
    await expect(chat.answer().locator("strong")).to_have_text("bold")
    engine.next()
    await expect(chat.answer().locator("li")).to_have_text(["one", "two"])
    await chat.see_state("complete")
    assert await chat.page.evaluate("window.first.isConnected && window.first.textContent === 'The first paragraph.'")


async def test_code_stands_in_its_frame_from_the_first_line_on(start: Any, visit: Visit, piecewise: Piecewise) -> None:
    engine = piecewise("Look:\n\n```py", "thon\nx = 1\n", "y = 2\n``", "`\n\nThat is all.")
    chat = Chat(await visit((await start(ChatStream(engine=engine))).url))
    code = chat.answer().locator("figure pre")
    await chat.send("Go")
    engine.next()
    await expect(chat.answer()).to_have_text("Look:")
    engine.next()
    await expect(code).to_have_text("x = 1")
    await chat.answer().locator("figure").evaluate("node => { window.figure = node; }")
    engine.next()
    await expect(code).to_have_text("x = 1\ny = 2")
    engine.next()
    await expect(chat.answer().locator("p").last).to_have_text("That is all.")
    await expect(chat.answer().locator("figcaption")).to_contain_text("python")
    assert await chat.page.evaluate("window.figure.isConnected")


async def test_code_that_was_interrupted_goes_on_in_the_same_frame(
    start: Any, visit: Visit, piecewise: Piecewise
) -> None:
    engine = piecewise("```python\nx = ", "", "1\ny = 2\n```\n")
    server = await start(ChatStream(engine=engine))
    chat = Chat(await visit(server.url))
    await chat.send("Go")
    engine.next()
    await expect(chat.answer()).to_contain_text("x =")
    await chat.stop_button.click()
    await until(lambda: server.stopping)
    engine.next()
    await chat.see_state("interrupted")
    engine.next()
    await chat.page.get_by_role("button", name="Continue").click()
    await chat.see_state("complete")
    await expect(chat.answer().locator("figure")).to_have_count(1)
    await expect(chat.answer().locator("pre")).to_have_text("x = 1\ny = 2")
