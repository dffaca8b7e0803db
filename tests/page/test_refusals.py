"""Refused messages: busy, draining and failing servers."""

from __future__ import annotations

import re
from functools import partial

import pytest
from playwright.async_api import expect

from aiochatstream import ChatStream, GenerationParams, Limits
from tests.helpers import until
from tests.page.chat_page import ChatPage
from tests.page.engines import echo_chunks
from tests.page.fixtures import MakeStepper, StartServer, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


async def test_queue_position_is_updated_while_waiting(start: StartServer, visit: Visit, stepper: MakeStepper) -> None:
    engine = stepper()
    server = await start(
        ChatStream(engine=engine, num_of_concurrent_executions=1, params=GenerationParams(max_new_tokens=1))
    )
    chats = [ChatPage(await visit(server.url)) for _ in range(3)]

    def is_waiting(count: int) -> bool:
        return server.chat_stream.admission.waiting == count and bool(engine.calls)

    for ahead, chat in enumerate(chats):
        await chat.send("Count")
        await until(partial(is_waiting, ahead))
    queues = [chat.turn().locator("[data-role=queue]") for chat in chats]
    await expect(queues[2]).to_have_text("You are 2nd in line")
    await expect(queues[1]).to_have_text("You are next in line")
    engine.allow(1)
    await expect(queues[2]).to_have_text("You are next in line")
    engine.allow(2)
    for chat in chats:
        await chat.expect_turns("Count", "1")


async def test_message_refused_by_a_full_queue_is_retried_after_a_countdown(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=1, max_queue_size=0, params=GenerationParams(max_new_tokens=1)
        )
    )
    first, second = ChatPage(await visit(server.url)), ChatPage(await visit(server.url))
    engine.allow(1)
    await first.ask("quick")  # so that the server expects a free place soon
    await first.send("first")
    await until(lambda: len(engine.calls) == 2)
    await second.send("second")
    await expect(second.refusal).to_have_attribute("data-code", "too_many_requests")
    await expect(second.countdown).to_have_text(re.compile(r"Retrying in \d+ s\."))
    await expect(second.unsent).to_have_text("second")
    await second.write("the next message")
    engine.allow(2)
    await second.expect_turns("second", "1")
    await expect(second.message).to_have_value("the next message")
    await expect(second.refusal).to_have_count(0)


async def test_refused_message_can_be_sent_again_or_returned_to_the_box(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=1, max_queue_size=0, params=GenerationParams(max_new_tokens=1)
        )
    )
    first, second = ChatPage(await visit(server.url)), ChatPage(await visit(server.url))
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
    await second.expect_turns("second", "1")


async def test_refused_message_is_shown_in_its_conversation_only(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(
        await visit((await start(ChatStream(engine=echo_chunks, limits=Limits(max_request_bytes=2048)))).url)
    )
    await chat.ask("first")
    await chat.page.locator("#new-chat").click()
    await chat.send("x" * 3000)
    await expect(chat.unsent).to_have_text("x" * 3000)
    await chat.page.locator("#conversations").get_by_text("first").click()
    await chat.expect_turns("first", "first")
    await expect(chat.refusal).to_have_count(0)
    await expect(chat.unsent).to_have_count(0)
    await chat.page.locator("#new-chat").click()
    await expect(chat.unsent).to_have_count(0)


async def test_draining_server_refuses_messages_and_completes_running_answers(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)))
    first, second = ChatPage(await visit(server.url)), ChatPage(await visit(server.url))
    await first.send("first")
    await until(lambda: engine.calls)
    server.chat_stream.drain()
    await second.send("second")
    await expect(second.refusal).to_have_attribute("data-code", "draining")
    await expect(second.refusal).to_contain_text("The server is restarting.")
    await expect(second.unsent).to_have_text("second")
    engine.allow(2)
    await first.expect_turns("first", "1 2")
    await second.page.reload()
    await expect(second.unsent).to_have_text("second")


async def test_message_can_be_sent_again_after_an_engine_error(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    engine = stepper(fail_at=0)
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)))
    chat = ChatPage(await visit(server.url))
    await chat.send("Count")
    engine.allow(1)
    await expect(chat.refusal).to_contain_text("The answer failed")
    await expect(chat.unsent).to_have_text("Count")
    await expect(chat.turns).to_have_count(0)
    engine.fail_at = None
    engine.allow(2)
    await chat.page.get_by_role("button", name="Send again").click()
    await chat.expect_turns("Count", "1 2")


async def test_text_before_an_engine_error_remains_and_can_be_continued(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    engine = stepper(fail_at=1)
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)))
    chat = ChatPage(await visit(server.url))
    await chat.send("Count")
    engine.allow(2)
    await chat.expect_state("interrupted")
    await chat.expect_turns("Count", "1")
    await expect(chat.refusal).to_have_count(0)
    await chat.page.reload()
    await chat.expect_turns("Count", "1")
    engine.fail_at = None
    engine.allow(2)
    await chat.page.get_by_role("button", name="Continue").click()
    await chat.expect_turns("Count", "1 1 2")


async def test_refusal_shows_the_detail_of_the_server_error(start: StartServer, visit: Visit) -> None:
    server = await start(ChatStream(engine=echo_chunks, limits=Limits(max_request_bytes=2048)))
    chat = ChatPage(await visit(server.url))
    await chat.send("x" * 3000)
    await expect(chat.refusal).to_contain_text("at most 2048 bytes are accepted")
    await expect(chat.unsent).to_have_text("x" * 3000)
    await chat.page.get_by_role("button", name="Back to the message box").click()
    await chat.write("short")
    await chat.message.press("Enter")
    await chat.expect_turns("short", "short")
