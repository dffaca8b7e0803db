"""The list of conversations: creation, renaming, deletion, search, export and import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream, GenerationParams
from aiochatstream.conversations.export import ExportedConversation
from tests.page.chat_page import ChatPage
from tests.page.engines import echo_chunks
from tests.page.fixtures import MakeStepper, StartServer, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


async def test_conversations_can_be_renamed_searched_and_deleted(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    page, listed = chat.page, chat.page.locator("#conversations > li")
    for title in ("Tea", "Coffee", "紅茶の話"):
        await page.locator("#new-chat").click()
        await chat.ask(title)
    await expect(listed).to_have_text(["紅茶の話", "Coffee", "Tea"])
    await listed.nth(1).hover()
    await listed.nth(1).get_by_role("button", name="Rename").click()
    await page.keyboard.type("Espresso")
    await page.keyboard.press("Enter")
    await expect(listed).to_have_text(["紅茶の話", "Espresso", "Tea"])
    await page.locator("#search").fill("紅茶")
    await expect(listed).to_have_text(["紅茶の話"])
    await page.locator("#search").fill("cocoa")
    await expect(listed).to_have_text(["No conversation title contains these words."])
    await page.locator("#search").fill("")
    await page.reload()
    await listed.nth(1).get_by_role("button", name="Espresso").click()
    await chat.expect_turns("Coffee", "Coffee")
    await listed.nth(1).hover()
    await listed.nth(1).get_by_role("button", name="Delete the conversation").click()
    await chat.confirm()
    await expect(listed).to_have_text(["紅茶の話", "Tea"])
    await chat.expect_turns("紅茶の話", "紅茶の話")
    await listed.nth(1).click()
    await chat.expect_turns("Tea", "Tea")


@pytest.mark.parametrize("end", ["Enter", "Escape", "a click into the message box", "Tab"])
async def test_renaming_ends_once_and_restores_the_focus(start: StartServer, visit: Visit, end: str) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    page, heading, box = chat.page, chat.page.locator("#heading"), chat.page.locator("input.rename")
    await chat.ask("Tea")
    await page.locator("#conversations > li").hover()
    await page.get_by_role("button", name="Rename").click()
    await page.keyboard.type("Green tea")
    if end in ("Enter", "Escape", "Tab"):
        await page.keyboard.press(end)
    else:
        await chat.message.click()
        await page.keyboard.type("words")
        await expect(chat.message).to_have_value("words")
    await expect(box).to_have_count(0)
    title = "Tea" if end == "Escape" else "Green tea"
    await expect(heading).to_have_text(title)
    await expect(page.locator("#conversations > li")).to_have_text([title])
    if end in ("Enter", "Escape", "Tab"):
        await expect(page.get_by_role("button", name="Rename")).to_be_focused()
    await page.keyboard.type("x")
    await expect(box).to_have_count(0)


async def test_conversation_can_be_exported_and_imported(start: StartServer, visit: Visit, tmp_path: Path) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    page, file = chat.page, tmp_path / "saved.json"
    await chat.ask("Guten Tag")
    await chat.ask("さようなら")
    async with page.expect_download() as downloading:
        await page.locator("#export").click()
    download = await downloading.value
    assert download.suggested_filename == "Guten Tag.json"
    await download.save_as(file)
    assert ExportedConversation.read(file).turns == 2, "aiochatstream chat reads the file"
    other = ChatPage(await visit(page.url))
    attack = "<img src=x onerror=alert(1)>"
    for path, texts in (
        (file, ["Guten Tag"] * 2 + ["さようなら"] * 2),
        (write_conversation(tmp_path / "attack.json", attack), [attack] * 2),
    ):
        async with other.page.expect_file_chooser() as choosing:
            await other.page.locator("#import").click()
        await (await choosing.value).set_files(path)
        await other.expect_turns(*texts)
    await other.page.reload()
    await other.expect_turns(attack, attack)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    async with other.page.expect_file_chooser() as choosing:
        await other.page.locator("#import").click()
    await (await choosing.value).set_files(broken)
    await expect(other.page.locator("#notices")).to_contain_text("This is not a conversation file.")


@pytest.mark.parametrize("allowed", [True, False])
async def test_system_prompt_of_a_file_is_used_only_if_the_server_allows_it(
    start: StartServer, visit: Visit, tmp_path: Path, allowed: bool
) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks, allow_system_prompt=allowed))).url))
    file = write_conversation(tmp_path / "cat.json", "Hello")
    file.write_text(json.dumps({**json.loads(file.read_text()), "system": "Be a cat. " * 100}))
    async with chat.page.expect_file_chooser() as choosing:
        await chat.page.locator("#import").click()
    await (await choosing.value).set_files(file)
    await chat.expect_turns("Hello", "Hello")
    notices = chat.page.locator("#notices")
    if allowed:
        await expect(notices).to_contain_text("The file sets the system prompt: Be a cat.")
    else:
        await expect(notices).to_contain_text("Conversation imported.")
        await expect(notices).not_to_contain_text("cat")
    await chat.ask("And now?")  # is answered


def write_conversation(file: Path, text: str) -> Path:
    """Write a conversation of one turn to ``file``."""
    file.write_text(
        json.dumps({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]})
    )
    return file


async def test_answer_continues_while_another_conversation_is_shown(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=3)))
    chat = ChatPage(await visit(server.url))
    await chat.send("Count")
    engine.allow(2)
    await expect(chat.answer()).to_have_text("1 2")
    await chat.page.locator("#new-chat").click()
    await expect(chat.turns).to_have_count(0)
    engine.allow(1)
    await chat.page.locator("#conversations").get_by_text("Count").click()
    await chat.expect_turns("Count", "1 2 3")
