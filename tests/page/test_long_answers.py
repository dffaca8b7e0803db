"""Long answers while they are written."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream, GenerationParams
from tests.page.chat_page import ChatPage
from tests.page.engines import Messages
from tests.page.fixtures import MakeStepper, StartServer, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


def words(count: int) -> list[str]:
    """Return numbered words in paragraphs of ten."""
    return [f"word{number}" + ("\n\n" if number % 10 == 9 else " ") for number in range(count)]


async def test_answer_of_2000_tokens_is_complete_and_announced_by_paragraphs(start: StartServer, visit: Visit) -> None:
    def answer(messages: Messages, params: GenerationParams) -> Iterator[str]:
        for word in words(2000):
            time.sleep(0.0005)  # so that the answer arrives in many pieces
            yield word

    chat = ChatPage(
        await visit((await start(ChatStream(engine=answer, params=GenerationParams(max_new_tokens=2001)))).url)
    )
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
    assert 0 < await chat.page.evaluate("window.announced") <= 205, "paragraphs, and the start and end of the answer"


async def test_scroll_position_above_the_end_is_kept_while_an_answer_grows(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    gate = stepper()

    def answer(messages: Messages, params: GenerationParams) -> Iterator[str]:
        steps = gate(messages, params)
        while True:
            next(steps)
            yield "A paragraph.\n\n" * 30

    chat = ChatPage(await visit((await start(ChatStream(engine=answer))).url))
    at_end = """() => {
      const { scrollTop, scrollHeight, clientHeight } = document.querySelector("#scroll");
      return scrollHeight - scrollTop - clientHeight < 3;
    }"""
    await chat.send("Write")
    gate.allow(2)
    await expect(chat.answer().locator("p")).to_have_count(60)
    await chat.page.wait_for_function(at_end)
    await chat.page.locator("#scroll").evaluate("(element) => element.scrollTo(0, 100)")
    latest = chat.page.locator("#latest")
    await expect(latest).to_be_visible()
    gate.allow(1)
    await expect(chat.answer().locator("p")).to_have_count(90)
    assert await chat.page.locator("#scroll").evaluate("(element) => element.scrollTop") == 100
    await latest.click()
    gate.allow(1)
    await expect(chat.answer().locator("p")).to_have_count(120)
    await chat.page.wait_for_function(at_end)
    await expect(latest).to_be_hidden()
