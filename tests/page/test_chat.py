"""A conversation, from sending to feedback."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream
from tests.helpers import until
from tests.page.chat_page import Chat, repeats
from tests.page.conftest import Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


async def test_the_real_model_answers_and_its_answer_appears_as_it_is_written(
    start: Any, visit: Visit, model: Any, tokenizer: Any
) -> None:
    server = await start(ChatStream(model=model, tokenizer=tokenizer, max_new_tokens=12, temperature=0.0))
    chat = Chat(await visit(server.url))
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
    assert len(await chat.page.evaluate("[...window.seen]")) > 2, "it grew in steps"
    await chat.act("times")
    await expect(chat.turn().locator(".stats")).to_contain_text("tokens/s")
    await expect(chat.page).to_have_title("What is the capital of France? – Chat")


async def test_stop_keeps_what_is_there_and_continue_goes_on_from_it(start: Any, visit: Visit, stepper: Any) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    chat = Chat(await visit(server.url))
    await chat.send("Count")
    await expect(chat.turn().locator(".dots")).to_be_visible()
    engine.allow(3)
    await expect(chat.answer()).to_have_text("1 2 3")
    await expect(chat.send_button).to_be_hidden()
    await chat.stop_button.click()
    await until(lambda: server.stopping)
    engine.allow(1)
    await chat.see_state("interrupted")
    await expect(chat.message).to_be_focused()
    await until(lambda: server.idle)
    await chat.page.get_by_role("button", name="Continue").click()
    await until(lambda: len(engine.calls) == 2)
    engine.allow(2)
    # the step that was under way when it was stopped may count
    await expect(chat.answer()).to_have_text(re.compile(r"^1 2 3( 4)? 1 2\s*$"))
    await expect(chat.answer().locator("p")).to_have_count(1)
    await expect(chat.turns).to_have_count(1)


async def test_a_message_that_follows_a_stop_at_once_leaves_the_stopped_one_in_its_place(
    start: Any, visit: Visit, stepper: Any
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    chat = Chat(await visit(server.url))
    await chat.send("Count")
    engine.allow(2)
    await expect(chat.answer()).to_have_text("1 2")
    await chat.stop_button.click()
    await until(lambda: server.stopping)
    await chat.send("Again")
    engine.allow(3)
    await expect(chat.turns).to_have_count(2)
    await expect(chat.answer()).to_have_text("1 2")
    await expect(chat.said(0)).to_have_text("Count")
    await expect(chat.message).to_have_value("")
    await expect(chat.refusal).to_have_count(0)


async def test_an_answer_is_made_again(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=counts()))).url))
    await chat.ask("one")
    await chat.ask("two")
    await expect(chat.button("regenerate", 0)).to_have_count(0)
    await chat.act("regenerate")
    await chat.see_turns("one", "answer 1", "two", "answer 3")


async def test_a_message_is_edited_and_what_came_after_it_goes(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=counts()))).url))
    for text in ("one", "two", "three"):
        await chat.ask(text)
    await chat.act("edit", 1)
    box = chat.page.get_by_role("textbox", name="Edit the message")
    await expect(box).to_be_focused()
    await box.fill("never mind")
    await box.press("Escape")
    await chat.see_turns("one", "answer 1", "two", "answer 2", "three", "answer 3")
    await chat.act("edit", 1)
    await box.fill("zwei")
    await box.press("Control+Enter")
    await chat.see_turns("one", "answer 1", "zwei", "answer 4")
    await chat.page.reload()
    await chat.see_turns("one", "answer 1", "zwei", "answer 4")


async def test_a_message_that_is_being_edited_is_so_after_another_conversation_and_a_reload(
    start: Any, visit: Visit
) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=counts()))).url))
    for text in ("one", "two"):
        await chat.ask(text)
    await chat.act("edit", 0)
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
    await chat.see_turns("one", "answer 1", "two", "answer 2")
    await expect(box).to_have_count(0)


async def test_a_turn_is_deleted_after_a_question_and_all_of_them_are_cleared(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=counts()))).url))
    for text in ("one", "two", "three"):
        await chat.ask(text)
    await chat.act("delete", 1)
    await chat.page.get_by_role("button", name="Cancel").click()
    await expect(chat.turns).to_have_count(3)
    await chat.act("delete", 1)
    await chat.confirm()
    await chat.see_turns("one", "answer 1", "three", "answer 3")
    await chat.page.get_by_role("button", name="Clear the conversation").click()
    await chat.confirm()
    await expect(chat.turns).to_have_count(0)
    await expect(chat.page.locator("#welcome")).to_be_visible()
    await chat.page.reload()
    await expect(chat.page.locator("#welcome")).to_be_visible()


async def test_a_like_and_its_comment_reach_the_owner(start: Any, visit: Visit) -> None:
    heard: list[Any] = []
    server = await start(
        ChatStream(engine=repeats, on_feedback_received=lambda request, feedback: heard.append(feedback))
    )
    chat = Chat(await visit(server.url))
    await chat.ask("Hello")
    await chat.act("like")
    await expect(chat.button("like")).to_have_attribute("aria-pressed", "true")
    await chat.page.get_by_role("textbox", name="Add a comment").fill("Short & <b>good</b>")
    await chat.page.get_by_role("button", name="Send comment").click()
    await until(lambda: len(heard) == 2)
    assert [(one.is_like, one.form_data) for one in heard] == [(True, None), (True, {"comment": "Short & <b>good</b>"})]
    assert heard[-1].target_message == "Hello"
    await chat.act("dislike")
    await expect(chat.button("dislike")).to_have_attribute("aria-pressed", "true")
    await expect(chat.button("like")).to_have_attribute("aria-pressed", "false")
    await until(lambda: heard[-1].is_like is False)


async def test_code_is_coloured_and_what_is_copied_is_as_the_model_wrote_it(start: Any, visit: Visit) -> None:
    page = await visit((await start(ChatStream(engine=repeats))).url, permissions=["clipboard-read", "clipboard-write"])
    chat = Chat(page)
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


def counts() -> Any:
    """An engine that says which answer this is."""
    number = 0

    def answer(messages: Any, params: Any) -> Any:
        nonlocal number
        number += 1
        yield "answer "
        yield str(number)

    return answer
