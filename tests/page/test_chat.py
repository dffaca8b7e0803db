"""A conversation: messages, answers, edits and feedback."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream, Feedback, GenerationParams
from tests.helpers import until
from tests.page.chat_page import ChatPage
from tests.page.engines import echo_chunks, numbered_answers
from tests.page.fixtures import MakeStepper, StartServer, Visit
from tests.small_engine import SmallEngine

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


async def test_answer_of_a_real_model_grows_on_the_page(
    start: StartServer, visit: Visit, small_engine: SmallEngine
) -> None:
    server = await start(ChatStream(engine=small_engine, params=GenerationParams(max_new_tokens=12, temperature=0.0)))
    chat = ChatPage(await visit(server.url))
    await chat.page.evaluate(
        """() => {
          window.seen = new Set();
          new MutationObserver(() => {
            const answer = document.querySelector("#turns [data-role=answer]");
            if (answer) window.seen.add(answer.textContent.length);
          }).observe(document.querySelector("#turns"), { childList: true, subtree: true, characterData: true });
        }"""
    )
    await chat.ask("What is the capital of France?")
    await expect(chat.answer()).to_contain_text("Paris")
    assert len(await chat.page.evaluate("[...window.seen]")) > 2, "the answer grew in steps"
    await chat.click("times")
    await expect(chat.turn().locator(".stats")).to_contain_text("tokens/s")
    await expect(chat.page).to_have_title("What is the capital of France? – Chat")


async def test_continue_extends_a_stopped_answer(start: StartServer, visit: Visit, stepper: MakeStepper) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    chat = ChatPage(await visit(server.url))
    await chat.send("Count")
    await expect(chat.turn().locator(".dots")).to_be_visible()
    engine.allow(3)
    await expect(chat.answer()).to_have_text("1 2 3")
    await expect(chat.send_button).to_be_hidden()
    await chat.stop_button.click()
    await until(lambda: server.stopping)
    engine.allow(1)
    await chat.expect_state("interrupted")
    await expect(chat.message).to_be_focused()
    await until(lambda: server.idle)
    await chat.page.get_by_role("button", name="Continue").click()
    await until(lambda: len(engine.calls) == 2)
    engine.allow(2)
    # the step that was running at the stop may count
    await expect(chat.answer()).to_have_text(re.compile(r"^1 2 3( 4)? 1 2\s*$"))
    await expect(chat.answer().locator("p")).to_have_count(1)
    await expect(chat.turns).to_have_count(1)


async def test_message_sent_right_after_stop_keeps_the_stopped_turn(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    chat = ChatPage(await visit(server.url))
    await chat.send("Count")
    engine.allow(2)
    await expect(chat.answer()).to_have_text("1 2")
    await chat.stop_button.click()
    await until(lambda: server.stopping)
    await chat.send("Again")
    engine.allow(3)
    await expect(chat.turns).to_have_count(2)
    await expect(chat.answer()).to_have_text("1 2")
    await expect(chat.user_message(0)).to_have_text("Count")
    await expect(chat.message).to_have_value("")
    await expect(chat.refusal).to_have_count(0)


async def test_regenerate_replaces_the_last_answer(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=numbered_answers()))).url))
    await chat.ask("one")
    await chat.ask("two")
    await expect(chat.button("regenerate", 0)).to_have_count(0)
    await chat.click("regenerate")
    await chat.expect_turns("one", "answer 1", "two", "answer 3")


async def test_edit_replaces_a_message_and_removes_later_turns(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=numbered_answers()))).url))
    for text in ("one", "two", "three"):
        await chat.ask(text)
    await chat.click("edit", 1)
    box = chat.page.get_by_role("textbox", name="Edit the message")
    await expect(box).to_be_focused()
    await box.fill("never mind")
    await box.press("Escape")
    await chat.expect_turns("one", "answer 1", "two", "answer 2", "three", "answer 3")
    await chat.click("edit", 1)
    await box.fill("zwei")
    await box.press("Control+Enter")
    await chat.expect_turns("one", "answer 1", "zwei", "answer 4")
    await chat.page.reload()
    await chat.expect_turns("one", "answer 1", "zwei", "answer 4")


async def test_edit_survives_another_conversation_and_a_reload(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=numbered_answers()))).url))
    for text in ("one", "two"):
        await chat.ask(text)
    await chat.click("edit", 0)
    box = chat.page.get_by_role("textbox", name="Edit the message")
    await box.fill("un")
    await chat.page.get_by_role("button", name="New chat").click()
    await expect(chat.turns).to_have_count(0)
    await chat.page.locator("#conversations button").first.click()
    await expect(box).to_have_value("un")
    await chat.page.reload()
    await expect(box).to_have_value("un")
    await expect(chat.message).to_be_focused()
    await box.press("Escape")
    await chat.page.reload()
    await chat.expect_turns("one", "answer 1", "two", "answer 2")
    await expect(box).to_have_count(0)


async def test_delete_and_clear_ask_for_confirmation(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=numbered_answers()))).url))
    for text in ("one", "two", "three"):
        await chat.ask(text)
    await chat.click("delete", 1)
    await chat.page.get_by_role("button", name="Cancel").click()
    await expect(chat.turns).to_have_count(3)
    await chat.click("delete", 1)
    await chat.confirm()
    await chat.expect_turns("one", "answer 1", "three", "answer 3")
    await chat.page.get_by_role("button", name="Clear the conversation").click()
    await chat.confirm()
    await expect(chat.turns).to_have_count(0)
    await expect(chat.page.locator("#welcome")).to_be_visible()
    await chat.page.reload()
    await expect(chat.page.locator("#welcome")).to_be_visible()


async def test_feedback_reaches_the_callback(start: StartServer, visit: Visit) -> None:
    received: list[Feedback] = []
    server = await start(
        ChatStream(engine=echo_chunks, on_feedback=lambda request, feedback: received.append(feedback))
    )
    chat = ChatPage(await visit(server.url))
    await chat.ask("Hello")
    await chat.click("like")
    await expect(chat.button("like")).to_have_attribute("aria-pressed", "true")
    await chat.page.get_by_role("textbox", name="Add a comment").fill("Short & <b>good</b>")
    await chat.page.get_by_role("button", name="Send comment").click()
    await until(lambda: len(received) == 2)
    assert [(feedback.is_like, feedback.form_data) for feedback in received] == [
        (True, None),
        (True, {"comment": "Short & <b>good</b>"}),
    ]
    assert received[-1].target_message == "Hello"
    await chat.click("dislike")
    await expect(chat.button("dislike")).to_have_attribute("aria-pressed", "true")
    await expect(chat.button("like")).to_have_attribute("aria-pressed", "false")
    await until(lambda: received[-1].is_like is False)


async def test_code_is_highlighted_and_copied_without_changes(start: StartServer, visit: Visit) -> None:
    page = await visit(
        (await start(ChatStream(engine=echo_chunks))).url, permissions=["clipboard-read", "clipboard-write"]
    )
    chat = ChatPage(page)
    code = 'def f(x):\n    return "<b>" + x  # 日本語\n'
    markdown = f"| a | b |\n|---|---|\n| 1 | 2 |\n\n- one\n- two\n\n```python\n{code}```\n\nand **bold**"
    await chat.ask(markdown)
    answer = chat.answer()
    await expect(answer.locator("td")).to_have_text(["1", "2"])
    await expect(answer.locator("li")).to_have_text(["one", "two"])
    await expect(answer.locator("strong")).to_have_text("bold")
    await expect(answer.locator("pre [class*=keyword]").first).to_have_text("def")
    for button, copied in ((page.locator("[data-action=copy-code]"), code), (chat.button("copy"), markdown)):
        await button.dblclick()
        await expect(button.locator(".copied")).to_have_count(1)
        assert (await page.evaluate("navigator.clipboard.readText()")).rstrip("\n") == copied.rstrip("\n")
        await expect(button.locator(".copied")).to_have_count(0)
