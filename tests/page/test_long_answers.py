"""Long answers, as they are written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream
from tests.page.chat_page import Chat
from tests.page.conftest import Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


def words(count: int) -> list[str]:
    """Paragraphs of ten words each, with their numbers."""
    return [f"word{number}" + ("\n\n" if number % 10 == 9 else " ") for number in range(count)]


async def test_of_2000_tokens_none_is_lost_and_none_is_said_aloud_by_itself(start: Any, visit: Visit) -> None:
    def answer(messages: Any, params: Any) -> Iterator[str]:
        for word in words(2000):
            time.sleep(0.0005)  # so that they come in many pieces
            yield word

    chat = Chat(await visit((await start(ChatStream(engine=answer, max_new_tokens=2001))).url))
    await chat.page.evaluate(
        """() => {
          window.announced = 0;
          new MutationObserver((changes) => {
            for (const { addedNodes } of changes) window.announced += addedNodes.length;
          }).observe(document.querySelector("#live"), { childList: true, subtree: true });
        }"""
    )
    await chat.ask("Write")
    shown = (await chat.answer().inner_text()).split()
    assert shown == [word.strip() for word in words(2000)]
    assert 0 < await chat.page.evaluate("window.announced") <= 205, "paragraphs, and that it waits and is complete"


async def test_who_reads_further_up_is_left_there(start: Any, visit: Visit, stepper: Any) -> None:
    gate = stepper()

    def answer(messages: Any, params: Any) -> Iterator[str]:
        steps = gate(messages, params)
        while True:
            next(steps)
            yield "A paragraph.\n\n" * 30

    chat = Chat(await visit((await start(ChatStream(engine=answer))).url))
    at_end = """() => {
      const { scrollTop, scrollHeight, clientHeight } = document.querySelector("#scroll");
      return scrollHeight - scrollTop - clientHeight < 3;
    }"""
    await chat.send("Write")
    gate.allow(2)
    await expect(chat.answer().locator("p")).to_have_count(60)
    await chat.page.wait_for_function(at_end)
    await chat.page.locator("#scroll").evaluate("(one) => one.scrollTo(0, 100)")
    latest = chat.page.locator("#latest")
    await expect(latest).to_be_visible()
    gate.allow(1)
    await expect(chat.answer().locator("p")).to_have_count(90)
    assert await chat.page.locator("#scroll").evaluate("(one) => one.scrollTop") == 100
    await latest.click()
    gate.allow(1)
    await expect(chat.answer().locator("p")).to_have_count(120)
    await chat.page.wait_for_function(at_end)
    await expect(latest).to_be_hidden()
