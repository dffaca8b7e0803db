"""The panels at the sides: settings for everyone, the developer's for the roles that have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream, GenerationParams
from tests.helpers import role_of
from tests.page.chat_page import Chat, repeats
from tests.page.conftest import Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


def tells(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
    """An engine that answers with what it was told first, and its temperature."""
    yield f"{messages[0]['content']} at {params.temperature}"


async def test_the_system_prompt_of_a_conversation_is_told_in_it_alone(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=tells, allow_system_prompt=True))).url))
    await chat.page.locator("#open-settings").click()
    await chat.page.get_by_label("System prompt").fill("Be a cat")
    await chat.ask("one")
    await expect(chat.answer()).to_have_text("Be a cat at 1.0")
    await chat.page.locator("#new-chat").click()
    await expect(chat.page.get_by_label("System prompt")).to_have_value("")
    await chat.ask("two")
    await expect(chat.answer()).to_have_text("two at 1.0")
    await chat.page.reload()
    await chat.page.locator("#conversations").get_by_text("one").click()
    await chat.ask("three")
    await expect(chat.answer()).to_have_text("Be a cat at 1.0")


async def test_where_the_server_keeps_its_system_prompt_none_is_offered(start: Any, visit: Visit) -> None:
    page = await visit((await start(ChatStream(engine=tells))).url)
    await page.locator("#open-settings").click()
    await expect(page.get_by_label("Temperature")).to_be_visible()
    await expect(page.get_by_label("System prompt")).to_have_count(0)


async def test_parameters_have_the_servers_ranges_and_hold_for_the_next_answers(start: Any, visit: Visit) -> None:
    server = await start(ChatStream(engine=tells, param_limits={"temperature": (0.5, 1.5)}, max_new_tokens=99))
    chat = Chat(await visit(server.url))
    await chat.page.locator("#open-settings").click()
    temperature = chat.page.get_by_label("Temperature")
    await expect(temperature).to_have_value("1")
    await expect(temperature).to_have_attribute("min", "0.5")
    await expect(temperature).to_have_attribute("max", "1.5")
    await expect(chat.page.get_by_label("Maximum length")).to_have_attribute("max", "99")
    await set_and_wait(chat, temperature, "7")
    await expect(temperature).to_have_value("1.5")
    await chat.ask("hot")
    await expect(chat.answer()).to_have_text("hot at 1.5")
    async with chat.page.expect_response("**/set_generation_params"):
        await chat.page.get_by_role("button", name="Reset to the server’s defaults").click()
    await expect(temperature).to_have_value("1")
    await chat.ask("cool")
    await expect(chat.answer()).to_have_text("hot at 1.0")


async def test_an_emptied_field_goes_back_to_the_servers_own_value(start: Any, visit: Visit) -> None:
    server = await start(ChatStream(engine=tells, temperature=0.7, max_new_tokens=99))
    chat = Chat(await visit(server.url))
    await chat.page.locator("#open-settings").click()
    for label, other, own in (("Temperature", "1.5", "0.7"), ("Maximum length", "5", "99"), ("Top k", "3", "0")):
        field = chat.page.get_by_label(label)
        default = await field.input_value()
        await set_and_wait(chat, field, other)
        await set_and_wait(chat, field, "")
        await expect(field).to_have_value(default)
        assert label == "Top k" or default == own
    await chat.ask("cool")
    await expect(chat.answer()).to_have_text("cool at 0.7")


async def set_and_wait(chat: Chat, field: Any, value: str) -> None:
    async with chat.page.expect_response("**/set_generation_params") as answered:
        await field.fill(value)
        await field.blur()
    assert (await answered.value).status == 200


async def test_the_developers_panel_is_for_the_roles_that_have_it(start: Any, visit: Visit) -> None:
    roles = {
        "guest": role_of("nothing", use_session=True),
        "developer": role_of("ui_pass_phrase", "open sesame", use_session=True, enable_dev_tool=True),
    }
    server = await start(ChatStream(engine=repeats, client_roles=roles))
    chat, guest = Chat(await visit(server.url)), Chat(await visit(server.url))
    await chat.ask("Hello")
    await expect(chat.page.locator("#open-dev")).to_be_hidden()
    await chat.send("open sesame")
    await expect(chat.page.locator("#notices")).to_contain_text("developer")
    await chat.see_turns("Hello", "Hello")
    await chat.page.locator("#open-dev").click()
    await chat.ask("What <b>now</b>?")
    panel = chat.page.locator("#dev")
    await panel.get_by_role("button", name="Refresh").click()
    await expect(panel.locator("[data-role=prompt]")).to_contain_text(json.dumps("What <b>now</b>?"))
    await expect(panel.locator("[data-role=load]")).to_contain_text("0 of 2 answers running")
    await expect(panel.locator("[data-role=memory]")).to_contain_text("GiB")
    events = panel.locator("[data-role=events] li")
    await expect(events.first).to_contain_text("start")
    await expect(events.last).to_contain_text('"finish_reason":"stop"')
    await chat.page.reload()
    await expect(chat.page.locator("#open-dev")).to_be_visible()
    await expect(guest.page.locator("#open-dev")).to_be_hidden()
    kept = await chat.page.evaluate("JSON.stringify(localStorage)")
    assert "sesame" not in kept
