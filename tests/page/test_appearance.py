"""Appearance: accessibility, small windows, languages, themes, prefixes and customisation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import aiohttp_session
import pytest
from aiohttp import web
from playwright.async_api import Page, expect

from aiochatstream import ChatStream, Delta, GenerationParams, MemoryStorage
from tests.helpers import role_of, serving, until
from tests.page.chat_page import ChatPage
from tests.page.engines import Messages, echo_chunks, thought
from tests.page.fixtures import ContextOptions, MakeDeltaStepper, MakeStepper, StartServer, Visit
from tests.page.test_composer import PHONE

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"

DEVELOPER = {"developer": role_of("nothing", use_session=True, enable_dev_tool=True)}

RICH = f"""\
# Heading

Text with `code`, **bold**, *italic*, ~~gone~~, [a link](https://example.org/), and {"a-very-long-word" * 20}.

- list
  - in a list

1. first

> quote

| a | b | c | d | e | f | g | h |
|---|--:|---|---|---|---|---|---|
| {" | ".join(["wide cell"] * 8)} |

```python
def f(x: int) -> str:  # {"a comment that goes on and on " * 5}
    return f"{{x}}" + 'string' * 3
```

---
"""

LOOKS: dict[str, ContextOptions] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {**PHONE, "locale": "ja-JP"},
}


@pytest.fixture
def axe() -> str:
    if not AXE.exists():
        pytest.skip("axe-core is missing: make page-tools (needs npm: apt-get install npm)")
    return AXE.read_text()


async def violations(page: Page, *rules: str) -> list[str]:
    """Return the violations that axe reports, for ``rules`` or for all of its default rules."""
    options = {"resultTypes": ["violations"], **({"runOnly": {"type": "rule", "values": rules}} if rules else {})}
    results = await page.evaluate("(options) => axe.run(options)", options)
    return [
        f"{violation['impact']}: {violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in results["violations"]
        for node in violation["nodes"]
    ]


async def overflowing(page: Page) -> list[str]:
    """Return the elements that are wider than the window."""
    elements: list[str] = await page.evaluate(
        """() => {
          const width = document.documentElement.clientWidth;
          const wide = document.documentElement.scrollWidth > width;
          const boxes = [...document.querySelectorAll("#scroll, #settings, #dev, #sidebar")];
          return [...(wide ? ["the page"] : []),
            ...boxes.filter((box) => box.clientWidth && box.scrollWidth > box.clientWidth).map((box) => box.id)];
        }"""
    )
    return elements


@pytest.mark.parametrize("look", LOOKS)
async def test_page_is_accessible_and_not_wider_than_its_window(
    start: StartServer, visit: Visit, stepper: MakeStepper, axe: str, look: str
) -> None:
    engine = stepper()

    def answer(messages: Messages, params: GenerationParams) -> Iterator[str]:
        if messages[-1]["content"] == "Wait":
            yield from engine(messages, params)
        else:
            yield RICH

    server = await start(
        ChatStream(
            engine=answer,
            client_roles=DEVELOPER,
            allow_system_prompt=True,
            num_of_concurrent_executions=1,
            max_queue_size=0,
        )
    )
    options: ContextOptions = {"reduced_motion": "reduce", **LOOKS[look]}
    chat = ChatPage(await visit(server.url, **options))
    page = chat.page
    await page.evaluate(axe)
    results: dict[str, list[str]] = {}

    async def check(state: str) -> None:
        rules = ["color-contrast"] if look == "dark" else []  # the other rules do not depend on colours
        results[state] = [*await violations(page, *rules), *await overflowing(page)]

    async def open_and_close(opener: str, panel: str) -> None:
        await page.locator(opener).click()
        await expect(page.locator(panel)).to_be_visible()
        await page.wait_for_function("() => document.getAnimations().length === 0")
        await check(panel)
        await page.locator(panel).press("Escape")
        if await page.locator(panel).is_visible():  # in wide windows, Escape leaves it open
            await page.locator(opener).click()

    await expect(page.locator("#welcome")).to_be_visible()
    assert await page.locator("#scroll").evaluate("(element) => element.scrollTop") == 0
    await check("empty")
    await chat.write("Show everything")
    await chat.send_button.click()
    await chat.expect_state("complete")
    await expect(chat.answer().locator("pre [class*=keyword]").first).to_be_visible()
    await chat.click("times")
    await chat.click("dislike")
    await check("answer")
    await chat.click("edit")
    await check("editing")
    await page.get_by_role("textbox").and_(page.locator("[data-role=edit]")).press("Escape")
    await page.locator("#clear").click()
    await check("question")
    await page.locator("#confirm-no").click()
    for opener, panel in (("#open-settings", "#settings"), ("#open-dev", "#dev")):
        await open_and_close(opener, panel)
    if look == "phone":
        await open_and_close("#open-sidebar", "#sidebar")
    other = ChatPage(await visit(server.url))
    await other.send("Wait")
    await until(lambda: engine.calls)
    await chat.write("Refused")
    await chat.send_button.click()
    await expect(chat.refusal).to_be_visible()
    await check("refusal")
    assert {state: problems for state, problems in results.items() if problems} == {}


@pytest.mark.parametrize("look", LOOKS)
async def test_thoughts_are_accessible_and_not_wider_than_the_window(
    start: StartServer,
    visit: Visit,
    delta_stepper: MakeDeltaStepper,
    axe: str,
    monkeypatch: pytest.MonkeyPatch,
    look: str,
) -> None:
    monkeypatch.setattr(ChatStream, "thinking_levels", ("off", "low", "medium", "high"))
    engine = delta_stepper(thought("a-very-long-word" * 20), Delta("Yes", (1,)))
    options: ContextOptions = {"reduced_motion": "reduce", **LOOKS[look]}
    chat = ChatPage(await visit((await start(ChatStream(engine=engine))).url, **options))
    page = chat.page
    await page.evaluate(axe)
    await expect(page.locator("#thinking")).to_be_visible()
    await chat.write("Go")
    await chat.send_button.click()
    engine.next()
    await expect(chat.thought_line()).to_be_visible()
    assert [*await violations(page), *await overflowing(page)] == []
    await chat.thought_line().click()
    engine.next()
    await chat.expect_state("complete")
    assert [*await violations(page), *await overflowing(page)] == []


async def test_language_follows_the_browser_and_can_be_changed(start: StartServer, visit: Visit) -> None:
    server = await start(ChatStream(engine=echo_chunks, client_roles=DEVELOPER, allow_system_prompt=True))
    chat = ChatPage(await visit(server.url, locale="ja-JP"))
    await expect(chat.page.locator("html")).to_have_attribute("lang", "ja")
    await expect(chat.page.locator("#welcome")).to_have_text("何についてお話ししましょうか？")
    await chat.ask("東京は晴れですか。")
    await chat.expect_turns("東京は晴れですか。", "東京は晴れですか。")
    await chat.page.locator("#open-settings").click()
    await expect(chat.page.get_by_text("温度", exact=True)).to_be_visible()
    texts = await chat.page.evaluate(
        """[...document.querySelectorAll("button, label, h1, h2, h3, [aria-label], [title], [placeholder]")].flatMap(
             (element) => [element.ariaLabel, element.title, element.placeholder,
                            element.childElementCount ? "" : element.textContent])"""
    )
    allowed = re.compile(r"Top [kp]|Enter|Shift|English|n|Python")
    english = [text for text in texts if re.search("[A-Za-z]", allowed.sub("", text or ""))]
    assert english == []
    await chat.page.locator("#locale").select_option("en")
    await expect(chat.page.locator("html")).to_have_attribute("lang", "en")
    await chat.page.reload()
    await expect(chat.message).to_have_attribute("placeholder", "Write a message")


async def test_theme_follows_the_system_unless_selected(start: StartServer, visit: Visit) -> None:
    page = await visit((await start(ChatStream(engine=echo_chunks))).url, color_scheme="dark")

    async def brightness() -> int:
        colour = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3])

    assert await brightness() < 200
    await page.locator("#theme").select_option("light")
    assert await brightness() > 600
    await page.reload()
    assert await brightness() > 600
    await page.locator("#theme").select_option("")
    assert await brightness() < 200


async def test_reduced_motion_stops_animations(start: StartServer, visit: Visit, stepper: MakeStepper) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    endless = "document.getAnimations().filter(({ effect }) => effect.getTiming().iterations === Infinity).length"
    settings: tuple[tuple[Literal["no-preference", "reduce"], bool], ...] = (("no-preference", True), ("reduce", False))
    for motion, moves in settings:
        chat = ChatPage(await visit(server.url, reduced_motion=motion))
        await chat.send("Wait")
        await expect(chat.turn().locator(".dots")).to_be_visible()
        assert (await chat.page.evaluate(endless) > 0) is moves


@pytest.mark.parametrize("path", ["/support/", "/deep/er/"])
async def test_page_works_under_a_prefix(visit: Visit, path: str) -> None:
    app, inner = web.Application(), web.Application()
    chat_stream = ChatStream(engine=echo_chunks)
    aiohttp_session.setup(app, MemoryStorage())
    if path == "/support/":
        chat_stream.setup(app)
        app.add_routes(chat_stream.routes(prefix="/support"))
    else:
        chat_stream.setup(inner)
        inner.add_routes(chat_stream.routes())
        app.add_subapp("/deep/er", inner)
    async with serving(app) as url:
        chat = ChatPage(await visit(url + path))
        await chat.ask("```js\nlet x = 1;\n```")
        await expect(chat.answer().locator("pre [class*=keyword]").first).to_have_text("let")
        await chat.page.reload()
        await expect(chat.answer()).to_contain_text("let x = 1;")
        await chat.page.close()


async def test_web_ui_params_customise_the_page(start: StartServer, visit: Visit) -> None:
    params = {
        "title": {"en": "Ask the library", "ja": "図書館に聞く"},
        "welcome": "<b>Which book?</b>",
        "avatar": "📚",
        "accent": "#aa0000",
        "examples": ["Who wrote Genji?"],
        "theme": "dark",
    }
    page = await visit((await start(ChatStream(engine=echo_chunks, web_ui_params=params))).url)
    chat = ChatPage(page)
    await expect(page).to_have_title("Ask the library")
    await expect(page.locator("#welcome")).to_have_text("<b>Which book?</b>")
    await expect(page.locator("#empty [data-avatar]")).to_have_text("📚")
    await page.get_by_role("button", name="Who wrote Genji?").click()
    await chat.expect_turns("Who wrote Genji?", "Who wrote Genji?")
    await chat.write("x")
    await expect(chat.send_button).to_have_css("background-color", "rgb(170, 0, 0)")
