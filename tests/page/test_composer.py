"""The message box: keys, input methods, phones and keyboard operation."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from aiochatstream import ChatStream, GenerationParams
from tests.helpers import until
from tests.page.chat_page import ChatPage
from tests.page.engines import echo_chunks
from tests.page.fixtures import ContextOptions, MakeStepper, StartServer, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

PHONE: ContextOptions = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}


async def test_enter_sends_and_shift_enter_inserts_a_newline(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    await expect(chat.message).to_be_focused()
    await expect(chat.send_button).to_be_disabled()
    for keys in ("Enter", " ", "Enter"):
        await chat.page.keyboard.press(keys)
    await expect(chat.turns).to_have_count(0)
    await chat.write("")
    await chat.page.keyboard.type("one")
    await chat.page.keyboard.press("Shift+Enter")
    await chat.page.keyboard.type("two")
    await chat.page.keyboard.press("Enter")
    await expect(chat.user_message()).to_have_text("one\ntwo", use_inner_text=True)
    await expect(chat.message).to_have_value("")


async def test_enter_during_composition_does_not_send(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    devtools = await chat.page.context.new_cdp_session(chat.page)

    async def compose(text: str) -> None:
        await devtools.send("Input.imeSetComposition", {"text": text, "selectionStart": -1, "selectionEnd": -1})

    async def enter_in_the_input_method() -> None:
        key = {"key": "Process", "code": "Enter", "windowsVirtualKeyCode": 229}
        await devtools.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key})
        await devtools.send("Input.dispatchKeyEvent", {"type": "keyUp", **key})

    await chat.message.focus()
    await compose("にほん")
    await enter_in_the_input_method()
    await devtools.send("Input.insertText", {"text": "日本"})
    await compose("ご")
    await press_enter(chat.page, composing=True)  # as in Chromium and Firefox
    await devtools.send("Input.insertText", {"text": "語"})
    await press_enter(chat.page, key_code=229)  # as in Safari, after the end of the composition
    await expect(chat.message).to_have_value("日本語")
    await expect(chat.turns).to_have_count(0)
    await chat.page.keyboard.press("Enter")
    await chat.expect_turns("日本語", "日本語")


async def test_phone_enter_inserts_a_newline_and_the_button_sends(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url, **PHONE))
    await chat.message.tap()
    await chat.page.keyboard.type("one")
    await chat.page.keyboard.press("Enter")
    await chat.page.keyboard.type("two")
    await expect(chat.message).to_have_value("one\ntwo")
    await expect(chat.turns).to_have_count(0)
    await chat.send_button.tap()
    await expect(chat.user_message()).to_have_text("one\ntwo", use_inner_text=True)


async def test_phone_keyboard_opens_only_for_a_tap_into_the_box(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=4)))
    chat = ChatPage(await visit(server.url, **PHONE))
    page = chat.page
    await expect(chat.message).not_to_be_focused()
    await chat.message.tap()
    await expect(chat.message).to_be_focused()
    await chat.write("one")
    await chat.send_button.tap()
    engine.allow(2)
    await expect(chat.answer()).to_have_text("1 2")
    await chat.stop_button.tap()
    await until(lambda: server.stopping)  # otherwise the answer continues, and waits for another step
    engine.allow(1)
    await chat.expect_state("interrupted")
    await expect(chat.message).not_to_be_focused()
    await page.locator("#open-sidebar").tap()
    await page.locator("#new-chat").tap()
    await expect(chat.turns).to_have_count(0)
    await expect(chat.message).not_to_be_focused()
    await page.locator("#open-sidebar").tap()
    await page.locator("#conversations").get_by_text("one").tap()
    await expect(chat.turns).to_have_count(1)
    await expect(chat.message).not_to_be_focused()
    engine.allow(2)
    await chat.click("delete")
    await chat.confirm()
    await expect(chat.turns).to_have_count(0)
    await expect(chat.message).not_to_be_focused()


async def test_all_actions_work_with_the_keyboard(start: StartServer, visit: Visit, stepper: MakeStepper) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    chat = ChatPage(await visit(server.url))
    keys = chat.page.keyboard
    await keys.type("Count")
    await keys.press("Enter")
    engine.allow(2)
    await expect(chat.answer()).to_have_text("1 2")
    await keys.press("Escape")
    await until(lambda: server.stopping)
    engine.allow(1)
    await chat.expect_state("interrupted")
    await expect(chat.message).to_be_focused()
    await tab_to(chat.page, "Regenerate the answer", "Shift+Tab")
    await keys.press("Enter")
    engine.allow(2)
    await expect(chat.answer()).to_have_text("1 2")
    await tab_to(chat.page, "Stop")
    await keys.press("Space")
    await until(lambda: server.stopping)
    engine.allow(1)
    await chat.expect_state("interrupted")
    await expect(chat.message).to_be_focused()
    await keys.press("ArrowUp")  # in an empty box: edits the last message
    await expect(chat.page.get_by_role("textbox", name="Edit the message")).to_be_focused()
    await keys.press("Escape")
    await expect(chat.button("edit")).to_be_focused()
    await tab_to(chat.page, "Settings", "Shift+Tab")
    await keys.press("Enter")
    await expect(chat.page.get_by_label("Temperature")).to_be_visible()  # the server's answer draws the parameters
    await tab_to(chat.page, "Temperature")
    await keys.press("Escape")
    await tab_to(chat.page, "New chat", "Shift+Tab")
    await keys.press("Enter")
    await expect(chat.turns).to_have_count(0)
    await expect(chat.message).to_be_focused()


async def test_focus_is_visible_at_each_tab_stop(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    await chat.ask("Hello")
    for _ in range(30):
        await chat.page.keyboard.press("Tab")
        outlined = await chat.page.evaluate(
            """() => {
              const element = document.activeElement;
              if (element === document.body) return true;
              const outlined = (node) => {
                const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(node);
                return (outlineStyle !== "none" && parseFloat(outlineWidth) > 0) || boxShadow !== "none";
              };
              return outlined(element) || outlined(element.parentElement) || element.outerHTML.slice(0, 200);
            }"""
        )
        assert outlined is True


async def press_enter(page: Page, *, composing: bool = False, key_code: int = 13) -> None:
    """Dispatch the event of a key that an input method has handled."""
    await page.locator("#message").evaluate(
        """(box, [isComposing, keyCode]) => box.dispatchEvent(new KeyboardEvent(
             "keydown", { key: "Enter", isComposing, keyCode, bubbles: true, cancelable: true }))""",
        [composing, key_code],
    )


async def tab_to(page: Page, name: str, key: str = "Tab") -> None:
    """Press ``key`` until the element with the accessible name ``name`` has the focus."""
    for _ in range(40):
        await page.keyboard.press(key)
        focused = await page.evaluate(
            """() => {
              const element = document.activeElement;
              const labels = [...(element.labels ?? [])].map((label) => label.textContent);
              return [element.ariaLabel, element.textContent, ...labels];
            }"""
        )
        if any((text or "").strip().startswith(name) for text in focused):
            return
    raise AssertionError(f"{key} does not reach {name}")
