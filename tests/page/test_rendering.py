"""Answers as they stand on the page: what cannot be drawn, long conversations, scrolling, directions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

from aiochatstream import ChatStream
from tests.helpers import until
from tests.page.chat_page import Chat, repeats
from tests.page.conftest import Piecewise, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

BOMBS = {
    "quotes": ">" * 2000,
    "lists": "+ " * 2000,
    "both": "> + " * 1000,
    "stars": "**" * 2000 + "a" + "**" * 2000,
    "emphasis": "*a **b " * 1000 + "c** d*" * 1000,
    "brackets": "[" * 3000 + "]" * 3000,
    "links": "[a](" * 1500 + ")" * 1500,
    "HTML": "<div>" * 3000,
    "table": "|" + "a|" * 2000 + "\n|" + "-|" * 2000,
    "one line": "x" * 100_000,
    "formulas": "\\[ x " * 6000,
    "code": "```python\n" + "(" * 50_000 + "\n```",
}

FOLLOWS = """() => {
  const { scrollTop, scrollHeight, clientHeight } = document.querySelector("#scroll");
  return scrollHeight - scrollTop - clientHeight < 3;
}"""

TOP = "(one) => one.getBoundingClientRect().top"


async def with_history(page: Page, count: int, answer: str = "Answer *{number}*\n\n- one\n- two") -> None:
    """Load the page again with a conversation of ``count`` turns."""
    messages = [
        message
        for number in range(count)
        for message in (
            {"role": "user", "content": f"Message {number}"},
            {"role": "assistant", "content": answer.format(number=number), "message_id": f"id{number}"},
        )
    ]

    response = await page.request.post(f"{page.url}import", data={"messages": messages})
    assert response.ok, await response.text()
    await page.reload()
    await expect(page.locator("#turns > .turn")).to_have_count(count)


@pytest.mark.parametrize("bomb", BOMBS)
async def test_an_answer_that_nests_too_deeply_is_text_and_everything_else_is_as_ever(
    start: Any, visit: Visit, bomb: str
) -> None:
    text = BOMBS[bomb]
    chat = Chat(await visit((await start(ChatStream(engine=repeats, max_new_tokens=100_000))).url))
    await chat.ask("before")
    await chat.page.context.request.post(
        chat.page.url + "chat_stream",
        data={"user_input": text, "conversation": await conversation(chat.page)},
        headers={"Accept": "application/json"},
    )
    await chat.page.reload()
    await expect(chat.turns).to_have_count(2)
    await chat.ask("- after")
    await expect(chat.answer().locator("li")).to_have_text("after")
    if bomb in ("quotes", "lists", "both", "HTML"):
        await expect(chat.answer(1)).to_have_text(text)
    await chat.page.locator("#new-chat").click()
    await chat.ask("elsewhere")
    await chat.page.locator("#conversations [data-action=open]").last.click()
    await expect(chat.turns).to_have_count(3)
    await chat.ask("back")
    await expect(chat.turns).to_have_count(4)
    await expect(chat.said()).to_have_text("back")


async def conversation(page: Page) -> str:
    """Id of the conversation on the page."""
    found = await page.locator("#conversations [data-current]").get_attribute("data-conversation")
    assert found
    return found


async def test_a_turn_that_cannot_be_drawn_is_plain_text_and_the_next_message_goes_to_its_own_conversation(
    start: Any, visit: Visit, problems: list[str]
) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    await chat.ask("first")
    await chat.page.locator("#new-chat").click()
    for text in ("one", "*breaks*", "*three*"):
        await chat.ask(text)
    await chat.page.add_init_script(
        """const replaceChild = Node.prototype.appendChild;
        Node.prototype.appendChild = function (node) {
          if (node.textContent === "breaks") throw new Error("cannot be drawn");
          return replaceChild.call(this, node);
        };"""
    )
    await chat.page.reload()
    await chat.see_turns("one", "one", "*breaks*", "*breaks*", "*three*", "three")
    await chat.page.locator("#conversations [data-action=open]").last.click()
    await chat.see_turns("first", "first")
    await chat.page.locator("#conversations [data-action=open]").first.click()
    await chat.ask("four")
    await expect(chat.turns).to_have_count(4)
    assert problems
    assert all("cannot be drawn" in problem for problem in problems)
    problems.clear()


async def test_code_in_a_list_can_be_copied_and_selected_while_the_list_grows(
    start: Any, visit: Visit, piecewise: Piecewise
) -> None:
    pieces = [f"more {number} " for number in range(5)]
    engine = piecewise("1. Run\n\n   ```sh\n   make run\n   ```\n\n   then ", *pieces, "\n\n2. end\n")
    page = await visit((await start(ChatStream(engine=engine))).url, permissions=["clipboard-read", "clipboard-write"])
    chat = Chat(page)
    await chat.send("Go")
    engine.next()
    code = chat.answer().locator("li figure code")
    await expect(code).to_have_text("make run")
    await chat.answer().locator("li figure").evaluate("node => { window.figure = node; }")
    await code.evaluate("node => getSelection().selectAllChildren(node)")
    button = chat.answer().locator("[data-action=copy-code]")
    for piece in pieces:
        await page.evaluate("navigator.clipboard.writeText('')")
        box = await button.bounding_box()
        assert box
        await page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        await page.mouse.down()
        engine.next()
        await expect(chat.answer()).to_contain_text(piece.strip())
        await page.mouse.up()
        await page.wait_for_function("async () => await navigator.clipboard.readText() === 'make run'")
    engine.next()
    await chat.see_state("complete")
    await expect(chat.answer().locator("ol > li")).to_have_count(2)
    assert await page.evaluate("window.figure.isConnected")
    assert await page.evaluate("String(getSelection())") == "make run"


async def test_of_1500_turns_only_those_near_the_screen_are_drawn_and_each_once(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    await with_history(chat.page, 1500)
    await chat.page.wait_for_function(FOLLOWS)
    await expect(chat.answer().locator("em")).to_have_text("1499")
    drawn = chat.page.locator("#turns .turn:has(li)")
    assert 0 < await drawn.count() < 60
    await expect(chat.answer(0)).to_have_text("Answer *0*\n\n- one\n- two")
    await chat.page.locator("#scroll").evaluate("(one) => one.scrollTo(0, 0)")
    await expect(chat.answer(0).locator("em")).to_have_text("0")
    await expect(chat.button("delete", 0)).to_have_count(1)
    assert await drawn.count() < 120


@pytest.mark.parametrize("count", [10, 1500])
async def test_a_change_touches_only_what_it_changes(start: Any, visit: Visit, count: int) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    await with_history(chat.page, count, "Answer {number}\n\n" * 12)
    await chat.page.wait_for_function(FOLLOWS)
    await expect(chat.answer().locator("p")).to_have_count(12)
    await chat.page.evaluate(
        """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
          window.touched = new Set();
          new MutationObserver((changes) => {
            for (const { target } of changes) {
              const turn = (target instanceof Element ? target : target.parentElement)?.closest(".turn");
              if (turn) window.touched.add(turn.dataset.messageId);
            }
          }).observe(document.querySelector("#turns"), {
            subtree: true, childList: true, characterData: true, attributes: true,
          });
          done();
        })))"""
    )
    await chat.ask("a new one")
    assert await chat.page.evaluate("window.touched.size") < 12


async def test_blocks_are_the_same_nodes_after_another_language_and_after_times_are_shown(
    start: Any, visit: Visit
) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    await chat.ask("A *paragraph*\n\n```python\nx = 1\n```")
    await expect(chat.answer().locator("pre [class*=hljs]").first).to_be_visible()
    await chat.answer().evaluate("node => { window.paragraph = node.querySelector('p'); }")
    await chat.page.locator("#locale").select_option("ja")
    await expect(chat.answer().locator("[data-action=copy-code]")).to_have_text("コピー")
    await expect(chat.button("copy")).to_have_attribute("aria-label", "コピー")
    assert await chat.page.evaluate("window.paragraph.isConnected")


@pytest.mark.parametrize("step", ["ArrowUp", "wheel", "one pixel at a time"])
async def test_any_step_up_ends_the_following_and_a_step_to_the_end_begins_it(
    start: Any, visit: Visit, piecewise: Piecewise, step: str
) -> None:
    engine = piecewise(*["A paragraph.\n\n" * 40] * 2, *["More.\n\n"] * 20)
    chat = Chat(await visit((await start(ChatStream(engine=engine))).url))
    scroll = chat.page.locator("#scroll")
    await chat.send("Go")
    engine.next()
    engine.next()
    await expect(chat.answer().locator("p")).to_have_count(80)
    await chat.page.wait_for_function(FOLLOWS)
    end = await scroll.evaluate("(one) => one.scrollTop")
    if step == "ArrowUp":
        await scroll.press("ArrowUp")
    elif step == "wheel":
        await scroll.hover()
        await chat.page.mouse.wheel(0, -53)
    else:
        for _ in range(3):
            await scroll.evaluate("(one) => { one.scrollTop -= 2; }")
    await chat.page.wait_for_function("(end) => document.querySelector('#scroll').scrollTop < end - 3", arg=end)
    for number in range(10):
        engine.next()
        await expect(chat.answer().locator("p")).to_have_count(81 + number)
    assert await scroll.evaluate("(one) => one.scrollTop") < end
    await expect(chat.page.locator("#latest")).to_be_visible()
    await scroll.press("End")
    await chat.page.wait_for_function(FOLLOWS)
    for number in range(10):
        engine.next()
        await expect(chat.answer().locator("p")).to_have_count(91 + number)
    await chat.page.wait_for_function(FOLLOWS)


async def test_home_and_end_arrive_where_turns_are_drawn_on_the_way(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    await with_history(chat.page, 200, "Answer *{number}*\n\n- one\n- two\n\n```python\nprint(1)\n```\n")
    await chat.page.wait_for_function(FOLLOWS)
    await chat.page.locator("#scroll").press("Home")
    await expect(chat.answer(0).locator("li")).to_have_text(["one", "two"])
    await chat.page.evaluate(frames)
    await chat.page.wait_for_function("() => document.querySelector('#scroll').scrollTop === 0")
    await chat.page.locator("#scroll").press("End")
    await chat.page.wait_for_function(FOLLOWS)
    await expect(chat.page.locator("#latest")).to_be_hidden()


async def test_what_is_read_stays_where_it_is(start: Any, visit: Visit) -> None:
    def answer(messages: Any, params: Any) -> Iterator[str]:
        yield "A paragraph.\n\n" * 12

    chat = Chat(await visit((await start(ChatStream(engine=answer))).url))
    for number in range(8):
        await chat.ask(f"Message {number}")
    await chat.turn(4).evaluate("(one) => one.scrollIntoView()")
    await expect(chat.page.locator("#latest")).to_be_visible()
    await chat.page.evaluate(frames)
    before = await chat.turn(4).evaluate(TOP)

    async def see_same_place() -> None:
        await chat.page.evaluate(frames)
        assert abs(await chat.turn(4).evaluate(TOP) - before) < 3

    await chat.page.locator("#open-settings").click()
    await see_same_place()
    await chat.page.locator("#settings").get_by_role("checkbox").first.check()
    await expect(chat.turn(4).locator(".stats")).to_be_visible()
    await see_same_place()
    await chat.page.locator("#locale").select_option("ja")
    await see_same_place()
    second = Chat(await chat.page.context.new_page())
    await second.page.goto(chat.page.url)
    await second.ask("From another tab")
    await chat.page.bring_to_front()
    await expect(chat.turns).to_have_count(9)
    await see_same_place()


frames = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"


async def test_nothing_of_a_message_refused_in_one_conversation_is_in_another(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    await chat.ask("in A")
    await chat.page.locator("#new-chat").click()
    await chat.ask("in B")
    await chat.page.route("**/chat_stream", lambda route: route.abort())
    await chat.send("refused in B")
    await expect(chat.unsent).to_have_text("refused in B")
    await chat.page.locator("#conversations [data-action=open]").last.click()
    await chat.see_turns("in A", "in A")
    await expect(chat.unsent).to_have_count(0)
    await expect(chat.refusal).to_have_count(0)
    await chat.page.locator("#conversations [data-action=open]").first.click()
    await expect(chat.unsent).to_have_text("refused in B")


async def test_a_highlighter_that_is_missing_is_asked_for_once(
    start: Any, visit: Visit, piecewise: Piecewise, problems: list[str]
) -> None:
    engine = piecewise("```python\n", *[f"x{number} = 1\n" for number in range(10)], "```\n\n```js\nlet x\n```")
    page = await visit((await start(ChatStream(engine=engine))).url)
    chat = Chat(page)
    asked: list[str] = []

    async def missing(route: Route) -> None:
        asked.append(route.request.url)
        await route.fulfill(status=404)

    await page.route("**/vendor/highlight/**", missing)
    await chat.send("Go")
    for number in range(11):
        engine.next()
        if number:
            await expect(chat.answer()).to_contain_text(f"x{number - 1} = 1")
    engine.next()
    await chat.see_state("complete")
    await expect(chat.answer().locator("pre")).to_have_text([re.compile("x9 = 1"), "let x"])
    files = [re.sub(r".*/highlight/", "", url) for url in asked]
    assert sorted(files) == ["core.js", "javascript.js", "python.js"]
    await until(lambda: len(problems) == len(files))
    assert all(problem.startswith("404 for ") for problem in problems)
    problems.clear()


async def test_arabic_and_hebrew_are_written_from_right_to_left(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    await chat.write("مرحبا")
    await expect(chat.message).to_have_css("direction", "rtl")
    await chat.ask("مرحبا بالعالم\n\nEnglish text\n\n- שלום\n\n```js\nlet x;\n```")
    await expect(chat.said()).to_have_css("direction", "rtl")
    answer = chat.answer()
    await expect(answer.locator("p").nth(0)).to_have_css("direction", "rtl")
    await expect(answer.locator("p").nth(1)).to_have_css("direction", "ltr")
    await expect(answer.locator("ul")).to_have_css("direction", "rtl")
    await expect(answer.locator("pre")).to_have_css("direction", "ltr")
    await expect(chat.page.locator("#heading")).to_have_css("direction", "rtl")
    await expect(chat.page.locator("#conversations [data-action=open] span").first).to_have_css("direction", "rtl")
    await chat.act("edit")
    await expect(chat.page.locator("[data-role=edit]")).to_have_css("direction", "rtl")


@pytest.mark.parametrize("before", ["", "> ", "- ", "1. ", "> - "])
async def test_a_link_refers_to_a_definition_wherever_it_stands(
    start: Any, visit: Visit, piecewise: Piecewise, before: str
) -> None:
    engine = piecewise(f"{before}[a]: https://example.com\n\n", "See [a].\n\n", "The end.")
    chat = Chat(await visit((await start(ChatStream(engine=engine))).url))
    await chat.send("Go")
    for text in ("", "See", "The end."):
        engine.next()
        await expect(chat.answer()).to_contain_text(text)
    await chat.see_state("complete")
    await expect(chat.answer().locator("a")).to_have_attribute("href", "https://example.com")


async def test_html_without_a_fence_is_shown_line_by_line(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    text = "<think>\nFirst,\n  second.\n</think>\n\n<ul>\n  <li>one</li>\n</ul>"
    await chat.ask(text)
    assert (await chat.answer().inner_text()).split() == text.split()
    for line in ("<think>", "First,", "  second.", "</think>", "<ul>", "  <li>one</li>", "</ul>"):
        assert line in (await chat.answer().inner_text()).split("\n")
