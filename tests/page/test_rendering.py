"""Rendering of answers: failures, long conversations, scrolling, text directions."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.async_api import Page, Route, expect

from aiochatstream import ChatStream, GenerationParams
from tests.helpers import until
from tests.page.chat_page import ChatPage
from tests.page.engines import Messages, echo_chunks
from tests.page.fixtures import MakePiecewise, StartServer, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

NESTED = {
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

TOP = "(element) => element.getBoundingClientRect().top"


async def import_history(page: Page, count: int, answer: str = "Answer *{number}*\n\n- one\n- two") -> None:
    """Import a conversation of ``count`` turns and reload the page."""
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


def echo_whole(messages: Messages, params: GenerationParams) -> Iterator[str]:
    yield messages[-1]["content"]


async def test_deeply_nested_answers_are_text_and_the_page_keeps_working(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_whole))).url))
    for case, text in NESTED.items():
        await chat.page.locator("#new-chat").click()
        await chat.ask("before")
        await chat.page.context.request.post(
            chat.page.url + "chat_stream",
            data={"user_input": text, "conversation": await current_conversation(chat.page)},
            headers={"Accept": "application/json"},
        )
        await chat.page.reload()
        await expect(chat.turns, case).to_have_count(2)
        await chat.ask("- after")
        await expect(chat.answer().locator("li"), case).to_have_text("after")
        if case in ("quotes", "lists", "both", "HTML"):
            await expect(chat.answer(1), case).to_have_text(text)
        await chat.page.locator("#new-chat").click()
        await chat.ask("elsewhere")
        await chat.page.locator("#conversations [data-action=open]").nth(1).click()
        await expect(chat.turns, case).to_have_count(3)
        await chat.ask("back")
        await expect(chat.turns, case).to_have_count(4)
        await expect(chat.user_message(), case).to_have_text("back")


async def current_conversation(page: Page) -> str:
    """Return the id of the current conversation."""
    conversation_id = await page.locator("#conversations [data-current]").get_attribute("data-conversation")
    assert conversation_id
    return conversation_id


async def test_turn_that_cannot_be_rendered_is_plain_text_and_affects_nothing_else(
    start: StartServer, visit: Visit, problems: list[str]
) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    await chat.ask("first")
    await chat.page.locator("#new-chat").click()
    for text in ("one", "*breaks*", "*three*"):
        await chat.ask(text)
    await chat.page.add_init_script(
        """const appendChild = Node.prototype.appendChild;
        Node.prototype.appendChild = function (node) {
          if (node.textContent === "breaks") throw new Error("cannot be drawn");
          return appendChild.call(this, node);
        };"""
    )
    await chat.page.reload()
    await chat.expect_turns("one", "one", "*breaks*", "*breaks*", "*three*", "three")
    await chat.page.locator("#conversations [data-action=open]").last.click()
    await chat.expect_turns("first", "first")
    await chat.page.locator("#conversations [data-action=open]").first.click()
    await chat.ask("four")
    await expect(chat.turns).to_have_count(4)
    assert problems
    assert all("cannot be drawn" in problem for problem in problems)
    problems.clear()


async def test_code_in_a_growing_list_can_be_copied_and_selected(
    start: StartServer, visit: Visit, piecewise: MakePiecewise
) -> None:
    pieces = [f"more {number} " for number in range(5)]
    engine = piecewise("1. Run\n\n   ```sh\n   make run\n   ```\n\n   then ", *pieces, "\n\n2. end\n")
    page = await visit((await start(ChatStream(engine=engine))).url, permissions=["clipboard-read", "clipboard-write"])
    chat = ChatPage(page)
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
    await chat.expect_state("complete")
    await expect(chat.answer().locator("ol > li")).to_have_count(2)
    assert await page.evaluate("window.figure.isConnected")
    assert await page.evaluate("String(getSelection())") == "make run"


async def test_only_turns_near_the_screen_are_rendered(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    await import_history(chat.page, 1500)
    await chat.page.wait_for_function(FOLLOWS)
    await expect(chat.answer().locator("em")).to_have_text("1499")
    drawn = chat.page.locator("#turns .turn:has(li)")
    assert 0 < await drawn.count() < 60
    await expect(chat.answer(0)).to_have_text("Answer *0*\n\n- one\n- two")
    await chat.page.locator("#scroll").evaluate("(element) => element.scrollTo(0, 0)")
    await chat.page.wait_for_function("document.getElementById('scroll').scrollTop === 0")
    await expect(chat.answer(0).locator("em")).to_have_text("0")
    await expect(chat.button("delete", 0)).to_have_count(1)
    assert await drawn.count() < 120


@pytest.mark.parametrize("count", [10, 1500])
async def test_new_turn_does_not_touch_other_turns(start: StartServer, visit: Visit, count: int) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    await import_history(chat.page, count, "Answer {number}\n\n" * 12)
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
    await chat.ask("a new message")
    assert await chat.page.evaluate("window.touched.size") < 12


async def test_blocks_keep_their_nodes_when_the_language_changes(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    await chat.ask("A *paragraph*\n\n```python\nx = 1\n```")
    await expect(chat.answer().locator("pre [class*=hljs]").first).to_be_visible()
    await chat.answer().evaluate("node => { window.paragraph = node.querySelector('p'); }")
    await chat.page.locator("#locale").select_option("ja")
    await expect(chat.answer().locator("[data-action=copy-code]")).to_have_text("コピー")
    await expect(chat.button("copy")).to_have_attribute("aria-label", "コピー")
    assert await chat.page.evaluate("window.paragraph.isConnected")


@pytest.mark.parametrize("step", ["ArrowUp", "wheel", "one pixel at a time"])
async def test_scrolling_up_stops_following_and_the_end_resumes_it(
    start: StartServer, visit: Visit, piecewise: MakePiecewise, step: str
) -> None:
    engine = piecewise(*["A paragraph.\n\n" * 40] * 2, *["More.\n\n"] * 20)
    chat = ChatPage(await visit((await start(ChatStream(engine=engine))).url))
    scroll = chat.page.locator("#scroll")
    await chat.send("Go")
    engine.next()
    engine.next()
    await expect(chat.answer().locator("p")).to_have_count(80)
    await chat.page.wait_for_function(FOLLOWS)
    end = await scroll.evaluate("(element) => element.scrollTop")
    if step == "ArrowUp":
        await scroll.press("ArrowUp")
    elif step == "wheel":
        await scroll.hover()
        await chat.page.mouse.wheel(0, -53)
    else:
        for _ in range(3):
            await scroll.evaluate("(element) => { element.scrollTop -= 2; }")
    await chat.page.wait_for_function("(end) => document.querySelector('#scroll').scrollTop < end - 3", arg=end)
    for number in range(10):
        engine.next()
        await expect(chat.answer().locator("p")).to_have_count(81 + number)
    assert await scroll.evaluate("(element) => element.scrollTop") < end
    await expect(chat.page.locator("#latest")).to_be_visible()
    await scroll.press("End")
    await chat.page.wait_for_function(FOLLOWS)
    for number in range(10):
        engine.next()
        await expect(chat.answer().locator("p")).to_have_count(91 + number)
    await chat.page.wait_for_function(FOLLOWS)


async def test_home_and_end_reach_their_targets_while_turns_are_rendered(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    await import_history(chat.page, 200, "Answer *{number}*\n\n- one\n- two\n\n```python\nprint(1)\n```\n")
    await chat.page.wait_for_function(FOLLOWS)
    await chat.page.locator("#scroll").press("Home")
    await expect(chat.answer(0).locator("li")).to_have_text(["one", "two"])
    await chat.page.evaluate(frames)
    await chat.page.wait_for_function("() => document.querySelector('#scroll').scrollTop === 0")
    await chat.page.locator("#scroll").press("End")
    await chat.page.wait_for_function(FOLLOWS)
    await expect(chat.page.locator("#latest")).to_be_hidden()


async def test_visible_text_keeps_its_position_when_heights_change(start: StartServer, visit: Visit) -> None:
    def answer(messages: Messages, params: GenerationParams) -> Iterator[str]:
        yield "A paragraph.\n\n" * 12

    chat = ChatPage(await visit((await start(ChatStream(engine=answer))).url))
    for number in range(8):
        await chat.ask(f"Message {number}")
    await chat.turn(4).evaluate("(element) => element.scrollIntoView()")
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
    second = ChatPage(await chat.page.context.new_page())
    await second.page.goto(chat.page.url)
    await second.ask("From another tab")
    await chat.page.bring_to_front()
    await expect(chat.turns).to_have_count(9)
    await see_same_place()


frames = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"


async def test_refused_message_is_not_shown_in_another_conversation(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    await chat.ask("in A")
    await chat.page.locator("#new-chat").click()
    await chat.ask("in B")
    await chat.page.route("**/chat_stream", lambda route: route.abort())
    await chat.send("refused in B")
    await expect(chat.unsent).to_have_text("refused in B")
    await chat.page.locator("#conversations [data-action=open]").last.click()
    await chat.expect_turns("in A", "in A")
    await expect(chat.unsent).to_have_count(0)
    await expect(chat.refusal).to_have_count(0)
    await chat.page.locator("#conversations [data-action=open]").first.click()
    await expect(chat.unsent).to_have_text("refused in B")


async def test_missing_highlighter_is_requested_once(
    start: StartServer, visit: Visit, piecewise: MakePiecewise, problems: list[str]
) -> None:
    engine = piecewise("```python\n", *[f"x{number} = 1\n" for number in range(10)], "```\n\n```js\nlet x\n```")
    page = await visit((await start(ChatStream(engine=engine))).url)
    chat = ChatPage(page)
    requests: list[str] = []

    async def missing(route: Route) -> None:
        requests.append(route.request.url)
        await route.fulfill(status=404)

    await page.route("**/vendor/highlight/**", missing)
    await chat.send("Go")
    for number in range(11):
        engine.next()
        if number:
            await expect(chat.answer()).to_contain_text(f"x{number - 1} = 1")
    engine.next()
    await chat.expect_state("complete")
    await expect(chat.answer().locator("pre")).to_have_text([re.compile("x9 = 1"), "let x"])
    files = [re.sub(r".*/highlight/", "", url) for url in requests]
    assert sorted(files) == ["core.js", "javascript.js", "python.js"]
    await until(lambda: len(problems) == len(files))
    assert all(problem.startswith("404 for ") for problem in problems)
    problems.clear()


async def test_arabic_and_hebrew_are_displayed_right_to_left(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    await chat.write("مرحبا")
    await expect(chat.message).to_have_css("direction", "rtl")
    await chat.ask("مرحبا بالعالم\n\nEnglish text\n\n- שלום\n\n```js\nlet x;\n```")
    await expect(chat.user_message()).to_have_css("direction", "rtl")
    answer = chat.answer()
    await expect(answer.locator("p").nth(0)).to_have_css("direction", "rtl")
    await expect(answer.locator("p").nth(1)).to_have_css("direction", "ltr")
    await expect(answer.locator("ul")).to_have_css("direction", "rtl")
    await expect(answer.locator("pre")).to_have_css("direction", "ltr")
    await expect(chat.page.locator("#heading")).to_have_css("direction", "rtl")
    await expect(chat.page.locator("#conversations [data-action=open] span").first).to_have_css("direction", "rtl")
    await chat.click("edit")
    await expect(chat.page.locator("[data-role=edit]")).to_have_css("direction", "rtl")


@pytest.mark.parametrize("before", ["", "> ", "- ", "1. ", "> - "])
async def test_link_definition_applies_from_quotes_and_lists(
    start: StartServer, visit: Visit, piecewise: MakePiecewise, before: str
) -> None:
    engine = piecewise(f"{before}[a]: https://example.com\n\n", "See [a].\n\n", "The end.")
    chat = ChatPage(await visit((await start(ChatStream(engine=engine))).url))
    await chat.send("Go")
    for text in ("", "See", "The end."):
        engine.next()
        await expect(chat.answer()).to_contain_text(text)
    await chat.expect_state("complete")
    await expect(chat.answer().locator("a")).to_have_attribute("href", "https://example.com")


async def test_html_without_a_fence_keeps_its_lines(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    text = "<think>\nFirst,\n  second.\n</think>\n\n<ul>\n  <li>one</li>\n</ul>"
    await chat.ask(text)
    assert (await chat.answer().inner_text()).split() == text.split()
    for line in ("<think>", "First,", "  second.", "</think>", "<ul>", "  <li>one</li>", "</ul>"):
        assert line in (await chat.answer().inner_text()).split("\n")
