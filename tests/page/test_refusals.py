"""A server that is busy, or goes away: the page says so, and sends again."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream
from tests.helpers import until
from tests.page.chat_page import Chat, repeats
from tests.page.conftest import Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


async def test_who_waits_sees_the_place_in_the_queue_get_better(start: Any, visit: Visit, stepper: Any) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1, max_new_tokens=1))
    chats = [Chat(await visit(server.url)) for _ in range(3)]
    for number, chat in enumerate(chats):
        await chat.send("Count")
        await until(lambda ahead=number: server.chat_stream.admission.waiting == ahead and engine.calls)
    queues = [chat.turn().locator("[data-role=queue]") for chat in chats]
    await expect(queues[2]).to_have_text("You are 2nd in line")
    await expect(queues[1]).to_have_text("You are next in line")
    engine.allow(1)
    await expect(queues[2]).to_have_text("You are next in line")
    engine.allow(2)
    for chat in chats:
        await chat.see_turns("Count", "1")


async def test_a_full_queue_counts_down_and_sends_again_by_itself(start: Any, visit: Visit, stepper: Any) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=0, max_new_tokens=1))
    first, second = Chat(await visit(server.url)), Chat(await visit(server.url))
    engine.allow(1)
    await first.ask("quick")  # so that the server believes that a place is free soon
    await first.send("first")
    await until(lambda: len(engine.calls) == 2)
    await second.send("second")
    await expect(second.refusal).to_have_attribute("data-code", "too_many_requests")
    await expect(second.countdown).to_have_text(re.compile(r"Retrying in \d+ s\."))
    await expect(second.unsent).to_have_text("second")
    await second.write("typed meanwhile")
    engine.allow(2)
    await second.see_turns("second", "1")
    await expect(second.message).to_have_value("typed meanwhile")
    await expect(second.refusal).to_have_count(0)


async def test_a_refused_message_is_sent_by_a_click_or_goes_back_into_the_box(
    start: Any, visit: Visit, stepper: Any
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=0, max_new_tokens=1))
    first, second = Chat(await visit(server.url)), Chat(await visit(server.url))
    await first.send("first")
    await until(lambda: engine.calls)
    await second.send("second")
    await second.page.get_by_role("button", name="Back to the message box").click()
    await expect(second.message).to_have_value("second")
    await expect(second.refusal).to_have_count(0)
    await second.message.press("Enter")
    await expect(second.refusal).to_be_visible()
    engine.allow(2)
    await until(lambda: server.idle)
    await second.page.get_by_role("button", name="Send now").click()
    await second.see_turns("second", "1")


async def test_a_refused_message_is_shown_in_its_own_conversation_alone(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats, max_request_bytes=2048))).url))
    await chat.ask("first")
    await chat.page.locator("#new-chat").click()
    await chat.send("x" * 3000)
    await expect(chat.unsent).to_have_text("x" * 3000)
    await chat.page.locator("#conversations").get_by_text("first").click()
    await chat.see_turns("first", "first")
    await expect(chat.refusal).to_have_count(0)
    await expect(chat.unsent).to_have_count(0)
    await chat.page.locator("#new-chat").click()
    await expect(chat.unsent).to_have_count(0)


async def test_a_server_that_drains_is_waited_for_and_running_answers_end(
    start: Any, visit: Visit, stepper: Any
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, max_new_tokens=2))
    first, second = Chat(await visit(server.url)), Chat(await visit(server.url))
    await first.send("first")
    await until(lambda: engine.calls)
    server.chat_stream.drain()
    await second.send("second")
    await expect(second.refusal).to_have_attribute("data-code", "draining")
    await expect(second.refusal).to_contain_text("The server is restarting.")
    await expect(second.unsent).to_have_text("second")
    engine.allow(2)
    await first.see_turns("first", "1 2")
    await second.page.reload()
    await expect(second.unsent).to_have_text("second")


async def test_an_engine_that_breaks_leaves_the_message_to_be_sent_again(
    start: Any, visit: Visit, stepper: Any
) -> None:
    engine = stepper(fail_at=1)
    server = await start(ChatStream(engine=engine, max_new_tokens=2))
    chat = Chat(await visit(server.url))
    await chat.send("Count")
    engine.allow(2)
    await expect(chat.refusal).to_contain_text("The answer failed")
    await expect(chat.unsent).to_have_text("Count")
    await expect(chat.turns).to_have_count(0)
    engine.fail_at = None
    engine.allow(2)
    await chat.page.get_by_role("button", name="Send again").click()
    await chat.see_turns("Count", "1 2")


async def test_what_the_server_does_not_take_is_said_in_its_words(start: Any, visit: Visit) -> None:
    server = await start(ChatStream(engine=repeats, max_request_bytes=2048))
    chat = Chat(await visit(server.url))
    await chat.send("x" * 3000)
    await expect(chat.refusal).to_contain_text("at most 2048 bytes are read")
    await expect(chat.unsent).to_have_text("x" * 3000)
    await chat.page.get_by_role("button", name="Back to the message box").click()
    await chat.write("short")
    await chat.message.press("Enter")
    await chat.see_turns("short", "short")
