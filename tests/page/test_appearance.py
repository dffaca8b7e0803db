"""For everyone: contrast, names and roles of things, small windows, languages, themes, other people's sites."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from playwright.async_api import Page, expect

from aiochatstream import ChatStream, MemoryStorage
from tests.helpers import role_of, serving, until
from tests.page.chat_page import Chat, repeats
from tests.page.conftest import Visit
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

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {**PHONE, "locale": "ja-JP"},
}


@pytest.fixture
def axe() -> str:
    if not AXE.exists():
        pytest.skip("axe-core is missing: make page-tools (needs npm: apt-get install npm)")
    return AXE.read_text()


async def findings(page: Page, *rules: str) -> list[str]:
    """What axe finds wrong on the page as it stands, by ``rules`` of its, or by all that it thinks are for everyone."""
    options = {"resultTypes": ["violations"], **({"runOnly": {"type": "rule", "values": rules}} if rules else {})}
    found = await page.evaluate("(options) => axe.run(options)", options)
    return [
        f"{one['impact']}: {one['id']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


async def sideways(page: Page) -> list[str]:
    """What makes the page wider than its window."""
    wider: list[str] = await page.evaluate(
        """() => {
          const width = document.documentElement.clientWidth;
          const wide = document.documentElement.scrollWidth > width;
          const boxes = [...document.querySelectorAll("#scroll, #settings, #dev, #sidebar")];
          return [...(wide ? ["the page"] : []),
            ...boxes.filter((one) => one.clientWidth && one.scrollWidth > one.clientWidth).map((one) => one.id)];
        }"""
    )
    return wider


@pytest.mark.parametrize("look", LOOKS)
async def test_axe_finds_nothing_and_nothing_sticks_out(
    start: Any, visit: Visit, stepper: Any, axe: str, look: str
) -> None:
    engine = stepper()

    def answer(messages: Any, params: Any) -> Any:
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
    options = {"reduced_motion": "reduce", **LOOKS[look]}
    chat = Chat(await visit(server.url, **options))
    page = chat.page
    await page.evaluate(axe)
    seen: dict[str, list[str]] = {}

    async def look_at(what: str) -> None:
        rules = ["color-contrast"] if look == "dark" else []  # all else is as in light
        seen[what] = [*await findings(page, *rules), *await sideways(page)]

    async def open_and_close(opener: str, panel: str) -> None:
        await page.locator(opener).click()
        await expect(page.locator(panel)).to_be_visible()
        await page.wait_for_function("() => document.getAnimations().length === 0")
        await look_at(panel)
        await page.locator(panel).press("Escape")
        if await page.locator(panel).is_visible():  # beside the conversation, where there is room for it
            await page.locator(opener).click()

    await expect(page.locator("#welcome")).to_be_visible()
    assert await page.locator("#scroll").evaluate("(one) => one.scrollTop") == 0, "the welcome begins at its beginning"
    await look_at("empty")
    await chat.write("Show everything")
    await chat.send_button.click()
    await chat.see_state("complete")
    await expect(chat.answer().locator("pre [class*=keyword]").first).to_be_visible()
    await chat.act("times")
    await chat.act("dislike")
    await look_at("answer")
    await chat.act("edit")
    await look_at("editing")
    await page.get_by_role("textbox").and_(page.locator("[data-role=edit]")).press("Escape")
    await page.locator("#clear").click()
    await look_at("question")
    await page.locator("#confirm-no").click()
    for opener, panel in (("#open-settings", "#settings"), ("#open-dev", "#dev")):
        await open_and_close(opener, panel)
    if look == "phone":
        await open_and_close("#open-sidebar", "#sidebar")
    other = Chat(await visit(server.url))
    await other.send("Wait")
    await until(lambda: engine.calls)
    await chat.write("Refused")
    await chat.send_button.click()
    await expect(chat.refusal).to_be_visible()
    await look_at("refusal")
    assert {what: wrong for what, wrong in seen.items() if wrong} == {}


async def test_it_speaks_japanese_to_who_prefers_it_and_english_on_request(start: Any, visit: Visit) -> None:
    server = await start(ChatStream(engine=repeats, client_roles=DEVELOPER, allow_system_prompt=True))
    chat = Chat(await visit(server.url, locale="ja-JP"))
    await expect(chat.page.locator("html")).to_have_attribute("lang", "ja")
    await expect(chat.page.locator("#welcome")).to_have_text("何についてお話ししましょうか？")
    await chat.ask("東京は晴れですか。")
    await chat.see_turns("東京は晴れですか。", "東京は晴れですか。")
    await chat.page.locator("#open-settings").click()
    await expect(chat.page.get_by_text("温度", exact=True)).to_be_visible()
    said = await chat.page.evaluate(
        """[...document.querySelectorAll("button, label, h1, h2, h3, [aria-label], [title], [placeholder]")].flatMap(
             (one) => [one.ariaLabel, one.title, one.placeholder, one.childElementCount ? "" : one.textContent])"""
    )
    allowed = re.compile(r"Top [kp]|Enter|Shift|English|n|Python")
    english = [text for text in said if re.search("[A-Za-z]", allowed.sub("", text or ""))]
    assert english == []
    await chat.page.locator("#locale").select_option("en")
    await expect(chat.page.locator("html")).to_have_attribute("lang", "en")
    await chat.page.reload()
    await expect(chat.message).to_have_attribute("placeholder", "Write a message")


async def test_the_theme_is_the_systems_until_one_is_chosen(start: Any, visit: Visit) -> None:
    page = await visit((await start(ChatStream(engine=repeats))).url, color_scheme="dark")

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


async def test_nothing_moves_for_who_does_not_want_that(start: Any, visit: Visit, stepper: Any) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    moving = "document.getAnimations().filter((one) => one.effect.getTiming().iterations === Infinity).length"
    for motion, moves in (("no-preference", True), ("reduce", False)):
        chat = Chat(await visit(server.url, reduced_motion=motion))
        await chat.send("Wait")
        await expect(chat.turn().locator(".dots")).to_be_visible()
        assert (await chat.page.evaluate(moving) > 0) is moves


@pytest.mark.parametrize("path", ["/support/", "/deep/er/"])
async def test_it_works_under_a_prefix(visit: Visit, path: str) -> None:
    app, inner = web.Application(), web.Application()
    chat_stream = ChatStream(engine=repeats)
    aiohttp_session.setup(app, MemoryStorage())
    if path == "/support/":
        chat_stream.setup(app)
        app.add_routes(chat_stream.routes(prefix="/support"))
    else:
        chat_stream.setup(inner)
        inner.add_routes(chat_stream.routes())
        app.add_subapp("/deep/er", inner)
    async with serving(app) as url:
        chat = Chat(await visit(url + path))
        await chat.ask("```js\nlet x = 1;\n```")
        await expect(chat.answer().locator("pre [class*=keyword]").first).to_have_text("let")
        await chat.page.reload()
        await expect(chat.answer()).to_contain_text("let x = 1;")
        await chat.page.close()


async def test_it_looks_and_speaks_as_its_owner_wants(start: Any, visit: Visit) -> None:
    look = {
        "title": {"en": "Ask the library", "ja": "図書館に聞く"},
        "welcome": "<b>Which book?</b>",
        "avatar": "📚",
        "accent": "#aa0000",
        "examples": ["Who wrote Genji?"],
        "theme": "dark",
    }
    page = await visit((await start(ChatStream(engine=repeats, web_ui_params=look))).url)
    chat = Chat(page)
    await expect(page).to_have_title("Ask the library")
    await expect(page.locator("#welcome")).to_have_text("<b>Which book?</b>")
    await expect(page.locator("#empty [data-avatar]")).to_have_text("📚")
    await page.get_by_role("button", name="Who wrote Genji?").click()
    await chat.see_turns("Who wrote Genji?", "Who wrote Genji?")
    await chat.write("x")
    await expect(chat.send_button).to_have_css("background-color", "rgb(170, 0, 0)")
