"""Thoughts of the model, and the selection of how much it thinks."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable

import pytest
from playwright.async_api import Page, expect

from aiochatstream import ChatStream, Delta, GenerationParams, Limits
from tests.helpers import STUCK_THOUGHT, THOUGHTFUL, DeltaEngine
from tests.page.chat_page import ChatPage
from tests.page.engines import thought
from tests.page.fixtures import MakeDeltaStepper, StartServer, Visit
from tests.page.test_composer import PHONE

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

END = Delta(finish_reason="stop")

TIME = re.compile(r"^Thought for \d+ s$")


async def announcements(page: Page) -> str:
    """Return the text of all live regions."""
    texts: list[str] = await page.locator("[aria-live], [role=log], [role=status], [role=alert]").all_text_contents()
    return "".join(texts)


async def test_thought_streams_folded_and_unfolded(
    start: StartServer, visit: Visit, delta_stepper: MakeDeltaStepper
) -> None:
    engine = delta_stepper(thought("First,\n\nI "), thought("think. "), thought("So."), Delta("The answer", (1,)), END)
    chat = ChatPage(await visit((await start(ChatStream(engine=engine))).url))
    await chat.send("Go")
    engine.next()
    await expect(chat.thought_line()).to_have_text(re.compile("^Thinking"))
    await expect(chat.turn().locator(".waiting")).to_be_hidden()
    await expect(chat.thought_text()).to_be_hidden()
    await chat.thought_line().click()
    await expect(chat.thought_text()).to_have_text("First,\n\nI ", use_inner_text=True)
    engine.next()
    await expect(chat.thought_text()).to_contain_text("I think. ")
    await chat.thought_line().click()
    engine.next()
    await expect(chat.thought_text()).to_be_hidden()
    await chat.thought_line().click()
    await expect(chat.thought_text()).to_contain_text("I think. So.")
    engine.next()
    await expect(chat.answer()).to_have_text("The answer")
    await expect(chat.thought_line()).to_have_text(TIME)
    engine.next()
    await chat.expect_state("complete")
    await expect(chat.thought_text()).to_be_visible()
    assert await chat.thought_text().evaluate("node => node.textContent") == "First,\n\nI think. So."


async def test_seconds_are_counted_while_the_model_thinks(
    start: StartServer, visit: Visit, delta_stepper: MakeDeltaStepper
) -> None:
    engine = delta_stepper(thought("Hm"), Delta("Yes", (1,)), thought("wait"), thought("no"), Delta("No", (2,)), END)
    page = await visit((await start(ChatStream(engine=engine))).url, clock=True)
    chat = ChatPage(page)
    await chat.send("Go")
    await chat.expect_state("waiting")
    engine.next()
    await expect(chat.thought_line()).to_have_text(re.compile("^Thinking"))
    await page.clock.fast_forward(15_000)
    await expect(chat.thought_line()).to_have_text(re.compile(r"^Thinking, [12]\d s$"))
    engine.next()
    await expect(chat.thought_line()).to_have_text(re.compile(r"^Thought for [12]\d s$"))
    await page.clock.fast_forward(30_000)  # the time of the answer is not counted
    engine.next()
    await expect(chat.thought_line()).to_have_text(re.compile(r"^Thinking, [123]\d s$"))
    await page.clock.fast_forward(30_000)
    await chat.thought_line().click()
    engine.next()
    await expect(chat.thought_text()).to_have_text("Hmwaitno")
    await page.clock.fast_forward(30_000)
    await expect(chat.thought_line()).to_have_text(re.compile(r"^Thinking, 1 min \d+ s$"))
    await chat.page.locator("#locale").select_option("ja")
    await expect(chat.thought_line()).to_have_text(re.compile(r"^思考中 1 分 \d+ 秒$"))
    engine.next(2)
    await expect(chat.thought_line()).to_have_text(re.compile(r"^1 分 \d+ 秒間思考しました$"))


async def test_thought_is_unfolded_with_the_keyboard(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL)))).url))
    await chat.ask("Two and two?")
    await chat.message.press("Shift+Tab")
    for _ in range(10):
        if await chat.thought_line().evaluate("node => node === document.activeElement"):
            break
        await chat.page.keyboard.press("Shift+Tab")
    await expect(chat.thought_line()).to_be_focused()
    for key, visible in (("Enter", True), ("Space", False), ("Space", True)):
        await chat.page.keyboard.press(key)
        await expect(chat.thought_text()).to_be_visible(visible=visible)


async def test_thought_is_neither_copied_nor_announced(start: StartServer, visit: Visit) -> None:
    server = await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL)))
    chat = ChatPage(await visit(server.url, permissions=["clipboard-read", "clipboard-write"]))
    await chat.ask("Two and two?")
    await chat.thought_line().click()
    await expect(chat.thought_text()).to_have_text("Let me see.")
    await chat.click("copy")
    await expect(chat.button("copy").locator(".copied")).to_be_visible()
    assert await chat.page.evaluate("navigator.clipboard.readText()") == "It is four."
    announced = await announcements(chat.page)
    assert "The answer is complete." in announced
    assert "see" not in announced
    assert await chat.thought().evaluate("node => !node.closest('[aria-live], [role=log], [role=status]')")


async def test_folded_thought_is_not_in_the_accessibility_tree(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL)))).url))
    await chat.ask("Two and two?")
    assert "Let me see." not in await chat.turn().aria_snapshot()
    await chat.thought_line().click()
    await expect(chat.thought_text()).to_be_visible()
    assert "Let me see." in await chat.turn().aria_snapshot()


async def test_thought_survives_a_reload(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL)))).url))
    await chat.ask("Two and two?")
    await expect(chat.thought_line()).to_have_text(TIME)
    await chat.page.reload()
    await chat.expect_turns("Two and two?", "It is four.")
    await expect(chat.thought_line()).to_have_text("Thoughts")
    await chat.thought_line().click()
    await expect(chat.thought_text()).to_have_text("Let me see.")
    await chat.page.locator("#locale").select_option("ja")
    await expect(chat.thought_line()).to_have_text("思考の過程")
    await expect(chat.thought_text()).to_be_visible()


async def test_second_tab_shows_a_running_thought(
    start: StartServer, visit: Visit, delta_stepper: MakeDeltaStepper
) -> None:
    engine = delta_stepper(thought("Let me "), thought("see."), Delta("It is ", (1,)), Delta("four.", (2,)), END)
    chat = ChatPage(await visit((await start(ChatStream(engine=engine))).url))
    await chat.send("Two and two?")
    engine.next()
    await expect(chat.thought_line()).to_be_visible()
    other = ChatPage(await chat.page.context.new_page())
    await other.page.goto(chat.page.url)
    await expect(other.thought_line()).to_have_text("Thinking")
    await other.thought_line().click()
    await expect(other.thought_text()).to_have_text("Let me ")
    engine.next()
    await expect(other.thought_text()).to_have_text("Let me see.")
    engine.next()
    await expect(other.answer()).to_have_text("It is ")
    await expect(other.thought_line()).to_have_text("Thoughts")
    engine.next(2)
    await other.expect_state("complete")
    await expect(other.thought_text()).to_have_text("Let me see.")


async def test_answer_that_is_stopped_while_thinking_returns_the_message(
    start: StartServer, visit: Visit, delta_stepper: MakeDeltaStepper
) -> None:
    engine = delta_stepper(thought("Hm"), thought("so"))
    server = await start(ChatStream(engine=engine))
    chat = ChatPage(await visit(server.url))
    await chat.send("Go")
    engine.next()
    await expect(chat.thought_line()).to_be_visible()
    await chat.stop_button.click()
    engine.next()
    await expect(chat.turns).to_have_count(0)
    await expect(chat.message).to_have_value("Go")


@pytest.mark.parametrize(
    ("locale", "note"),
    [
        ("en-US", "The maximum length was reached while thinking, before the answer."),
        ("ja-JP", "応答の前の思考中に最大長に達しました。"),
    ],
)
async def test_note_explains_that_the_maximum_length_was_reached_while_thinking(
    start: StartServer, visit: Visit, locale: str, note: str
) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=DeltaEngine(*STUCK_THOUGHT)))).url, locale=locale))
    await chat.ask("Two and two?")
    await expect(chat.turn().locator(".note")).to_contain_text(note)
    await expect(chat.button("copy")).to_have_count(0)
    await expect(chat.button("regenerate")).to_be_visible()
    await chat.page.reload()
    await expect(chat.thought_line()).to_be_visible()


async def test_statistics_count_the_tokens_of_thoughts(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL)))).url))
    await chat.ask("Two and two?")
    await chat.click("times")
    await expect(chat.turn().locator(".stats")).to_contain_text("7 tokens · 4 of them for thinking · ")


async def test_long_thought_is_appended_to_and_keeps_its_nodes(
    start: StartServer, visit: Visit, delta_stepper: MakeDeltaStepper
) -> None:
    lines = "A line of a long thought, which fills some fifty characters.\n" * 2000
    engine = delta_stepper(thought(lines), thought("The last "), thought("line."), Delta("Yes", (1,)), END)
    server = await start(ChatStream(engine=engine, limits=Limits(max_answer=600)))
    chat = ChatPage(await visit(server.url))
    await chat.send("Go")
    engine.next()
    await chat.thought_line().click()
    await expect(chat.thought_text().locator("> *")).to_have_count(2000)
    await chat.thought_text().evaluate(
        """(text) => {
          window.changes = [];
          new MutationObserver((records) => window.changes.push(...records.map(({ addedNodes, removedNodes }) =>
            [addedNodes.length, removedNodes.length]))).observe(text, { childList: true, subtree: true });
        }"""
    )
    for end in ("The last ", "line."):
        engine.next()
        await expect(chat.thought_text().locator("> *").last).to_have_text(re.compile(re.escape(end) + "$"))
    engine.next(2)
    await chat.expect_state("complete")
    assert await chat.page.evaluate("window.changes") == [[1, 0], [1, 0]], "one node for each piece"


async def test_unfolding_a_thought_above_the_end_keeps_its_place(start: StartServer, visit: Visit) -> None:
    deltas = (Delta(thinking="A line.\n" * 200, token_ids=(1,)), Delta("A paragraph.\n\n" * 50, (2,), "stop"))
    chat = ChatPage(await visit((await start(ChatStream(engine=DeltaEngine(*deltas)))).url))
    await chat.ask("Go")
    await chat.thought_line().scroll_into_view_if_needed()
    await chat.thought_line().click()
    await expect(chat.thought_text()).to_be_visible()
    await expect(chat.thought_line()).to_be_in_viewport()
    await expect(chat.page.locator("#latest")).to_be_visible()
    await chat.page.locator("#latest").click()
    await expect(chat.thought_line()).not_to_be_in_viewport()


async def test_unfolding_a_thought_at_the_end_keeps_its_place(start: StartServer, visit: Visit) -> None:
    deltas = (Delta(thinking="A line.\n" * 200, token_ids=(1,)), Delta("Yes.", (2,), "stop"))
    chat = ChatPage(await visit((await start(ChatStream(engine=DeltaEngine(*deltas)))).url))
    await chat.ask("Go")
    await chat.thought_line().click()
    await expect(chat.thought_text()).to_be_visible()
    await expect(chat.page.locator("#latest")).to_be_visible()
    await expect(chat.thought_line()).to_be_in_viewport()


async def params_of(chat: ChatPage, sending: Awaitable[None]) -> dict[str, object] | None:
    """Return the generation parameters of the request that ``sending`` causes."""
    async with chat.page.expect_request("**/chat_stream") as request:
        await sending
    body = json.loads((await request.value).post_data or "")
    params: dict[str, object] | None = body.get("params")
    return params


async def test_level_of_thinking_is_sent_and_remembered(
    start: StartServer, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatStream, "thinking_levels", ("off", "low", "medium", "high"))
    engine = DeltaEngine(*THOUGHTFUL)
    chat = ChatPage(await visit((await start(ChatStream(engine=engine))).url))
    select = chat.page.get_by_label("Thinking", exact=True)
    await expect(select.locator("option")).to_have_text(["Auto", "Off", "Low", "Medium", "High"])
    await expect(select).to_have_value("auto")
    assert await params_of(chat, chat.ask("one")) is None
    await select.select_option("low")
    assert await params_of(chat, chat.ask("two")) == {"thinking": "low"}
    await chat.page.reload()
    await expect(select).to_have_value("low")
    assert await params_of(chat, chat.click("regenerate")) == {"thinking": "low"}
    await chat.expect_state("complete")


async def test_level_of_thinking_may_be_a_switch(
    start: StartServer, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatStream, "thinking_levels", ("off", "high"))
    chat_stream = ChatStream(engine=DeltaEngine(*THOUGHTFUL), params=GenerationParams(thinking="off"))
    server = await start(chat_stream)
    for locale, label, names in (("en-US", "Thinking", ["Off", "On"]), ("ja-JP", "思考", ["オフ", "オン"])):
        page = await visit(server.url, locale=locale)
        select = page.get_by_label(label, exact=True)
        await expect(select.locator("option")).to_have_text(names)
        await expect(select).to_have_value("off")


@pytest.mark.parametrize("levels", [(), ("auto",)])
async def test_level_of_thinking_is_hidden_without_a_choice_and_then_not_sent(
    start: StartServer, visit: Visit, monkeypatch: pytest.MonkeyPatch, levels: tuple[str, ...]
) -> None:
    monkeypatch.setattr(ChatStream, "thinking_levels", ("off", "high"))
    server = await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL)))
    chat = ChatPage(await visit(server.url, **PHONE))
    await chat.page.locator("#thinking-level").select_option("off")
    monkeypatch.setattr(ChatStream, "thinking_levels", levels)
    await chat.page.reload()
    await expect(chat.page.locator("#welcome")).to_be_visible()
    await expect(chat.page.locator("#thinking")).to_be_hidden()
    await chat.write("one")
    assert await params_of(chat, chat.send_button.click()) is None
    await chat.expect_state("complete")


async def test_level_of_thinking_appears_after_the_model_is_loaded(
    start: StartServer, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatStream, "thinking_levels", ("off", "high"))
    server = await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL)))
    server.chat_stream.state = "starting"
    chat = ChatPage(await visit(server.url))
    await chat.page.wait_for_function("document.querySelector('#welcome').textContent")
    await expect(chat.page.locator("#thinking")).to_be_hidden()
    server.chat_stream.state = "ready"
    await chat.ask("one")
    await expect(chat.page.locator("#thinking")).to_be_visible()
