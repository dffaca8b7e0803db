"""Rendering of an answer while it grows."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream
from tests.helpers import until
from tests.page.chat_page import ChatPage
from tests.page.fixtures import MakePiecewise, StartServer, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


async def test_complete_blocks_keep_their_nodes_while_the_answer_grows(
    start: StartServer, visit: Visit, piecewise: MakePiecewise
) -> None:
    engine = piecewise("The first *paragraph*.\n\nThe ", "second, with **bo", "ld** text.\n\n- one\n", "- two\n")
    chat = ChatPage(await visit((await start(ChatStream(engine=engine))).url))
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
    await chat.expect_state("complete")
    assert await chat.page.evaluate("window.first.isConnected && window.first.textContent === 'The first paragraph.'")


async def test_code_has_its_frame_from_the_first_line(
    start: StartServer, visit: Visit, piecewise: MakePiecewise
) -> None:
    engine = piecewise("Look:\n\n```py", "thon\nx = 1\n", "y = 2\n``", "`\n\nThat is all.")
    chat = ChatPage(await visit((await start(ChatStream(engine=engine))).url))
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


async def test_continued_code_stays_in_its_frame(start: StartServer, visit: Visit, piecewise: MakePiecewise) -> None:
    engine = piecewise("```python\nx = ", "", "1\ny = 2\n```\n")
    server = await start(ChatStream(engine=engine))
    chat = ChatPage(await visit(server.url))
    await chat.send("Go")
    engine.next()
    await expect(chat.answer()).to_contain_text("x =")
    await chat.stop_button.click()
    await until(lambda: server.stopping)
    engine.next()
    await chat.expect_state("interrupted")
    engine.next()
    await chat.page.get_by_role("button", name="Continue").click()
    await chat.expect_state("complete")
    await expect(chat.answer().locator("figure")).to_have_count(1)
    await expect(chat.answer().locator("pre")).to_have_text("x = 1\ny = 2")
