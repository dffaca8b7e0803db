"""The side panels: settings, and the developer's panel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import MappingProxyType

import pytest
from playwright.async_api import Locator, expect

from aiochatstream import ChatStream, GenerationParams, ScriptedEngine
from tests.helpers import role_of
from tests.page.chat_page import ChatPage
from tests.page.engines import Messages, echo_chunks
from tests.page.fixtures import StartServer, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


def echo_first_message(messages: Messages, params: GenerationParams) -> Iterator[str]:
    """Yield the first message and the temperature."""
    yield f"{messages[0]['content']} at {params.temperature}"


async def test_system_prompt_applies_to_its_conversation_only(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_first_message, allow_system_prompt=True))).url))
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


async def test_system_prompt_is_hidden_unless_the_server_allows_it(start: StartServer, visit: Visit) -> None:
    page = await visit((await start(ChatStream(engine=echo_first_message))).url)
    await page.locator("#open-settings").click()
    await expect(page.get_by_label("Temperature")).to_be_visible()
    await expect(page.get_by_label("System prompt")).to_have_count(0)


async def test_parameters_are_clamped_to_the_limits_and_apply_to_the_next_answers(
    start: StartServer, visit: Visit
) -> None:
    server = await start(
        ChatStream(
            engine=echo_first_message,
            param_limits={"temperature": (0.5, 1.5)},
            params=GenerationParams(max_new_tokens=99),
        )
    )
    chat = ChatPage(await visit(server.url))
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


async def test_each_value_has_its_origin(start: StartServer, visit: Visit) -> None:
    class ModelEngine(ScriptedEngine):
        default_params = MappingProxyType({"temperature": 0.6})

    page = await visit((await start(ChatStream(engine=ModelEngine(), params=GenerationParams(top_k=5)))).url)
    await page.locator("#open-settings").click()
    origins = {"temperature": "the model’s own", "top_k": "the server’s", "top_p": "default"}
    for name, origin in origins.items():
        await expect(page.locator(f"#param-{name}-source")).to_have_text(origin)
    await expect(page.get_by_label("Temperature")).to_have_accessible_description(re.compile("the model’s own$"))
    await set_and_wait(ChatPage(page), page.get_by_label("Temperature"), "0.9")
    await expect(page.locator("#param-temperature-source")).to_have_text("yours")
    await set_and_wait(ChatPage(page), page.get_by_label("Temperature"), "")
    await expect(page.locator("#param-temperature-source")).to_have_text("the model’s own")


async def test_empty_parameter_field_restores_the_default(start: StartServer, visit: Visit) -> None:
    server = await start(
        ChatStream(engine=echo_first_message, params=GenerationParams(temperature=0.7, max_new_tokens=99))
    )
    chat = ChatPage(await visit(server.url))
    await chat.page.locator("#open-settings").click()
    for label, value, expected in (("Temperature", "1.5", "0.7"), ("Maximum length", "5", "99"), ("Top k", "3", "0")):
        field = chat.page.get_by_label(label)
        default = await field.input_value()
        await set_and_wait(chat, field, value)
        await set_and_wait(chat, field, "")
        await expect(field).to_have_value(default)
        assert label == "Top k" or default == expected
    await chat.ask("cool")
    await expect(chat.answer()).to_have_text("cool at 0.7")


async def set_and_wait(chat: ChatPage, field: Locator, value: str) -> None:
    async with chat.page.expect_response("**/set_generation_params") as response:
        await field.fill(value)
        await field.blur()
    assert (await response.value).status == 200


async def test_developer_panel_requires_its_role(start: StartServer, visit: Visit) -> None:
    roles = {
        "guest": role_of("nothing", use_session=True),
        "developer": role_of("ui_pass_phrase", "open sesame", use_session=True, enable_dev_tool=True),
    }
    server = await start(ChatStream(engine=echo_chunks, client_roles=roles))
    chat, guest = ChatPage(await visit(server.url)), ChatPage(await visit(server.url))
    await chat.ask("Hello")
    await expect(chat.page.locator("#open-dev")).to_be_hidden()
    await chat.send("open sesame")
    await expect(chat.page.locator("#notices")).to_contain_text("developer")
    await chat.expect_turns("Hello", "Hello")
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
    storage = await chat.page.evaluate("JSON.stringify(localStorage)")
    assert "sesame" not in storage
