"""Nothing is lost: reloads, other tabs, other people, broken connections, and a server that starts anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from cryptography.fernet import Fernet
from playwright.async_api import expect

from aiochatstream import ChatStream, CookieStorage
from tests.helpers import Server, running_server, until
from tests.page.chat_page import Chat, repeats
from tests.page.conftest import Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


async def test_two_people_talk_and_neither_sees_the_other(start: Any, visit: Visit) -> None:
    server = await start(ChatStream(engine=repeats))
    anna, bert = Chat(await visit(server.url)), Chat(await visit(server.url))
    await anna.ask("I am Anna")
    await bert.ask("I am Bert")
    await anna.ask("Anna again")
    for chat, texts in ((anna, ["I am Anna"] * 2 + ["Anna again"] * 2), (bert, ["I am Bert"] * 2)):
        await chat.see_turns(*texts)
        await chat.page.reload()
        await chat.see_turns(*texts)


async def test_a_reload_in_mid_answer_shows_what_was_said_and_that_it_was_interrupted(
    start: Any, visit: Visit, stepper: Any
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    chat = Chat(await visit(server.url))
    await chat.send("Count")
    engine.allow(2)
    await expect(chat.answer()).to_have_text("1 2")
    await chat.write("a draft")
    await chat.page.reload()
    await expect(chat.said()).to_have_text("Count")
    await expect(chat.message).to_have_value("a draft")
    engine.allow(5)
    await chat.see_state("interrupted")
    await expect(chat.answer()).to_contain_text("1 2")
    assert len(engine.calls) == 1


async def test_a_reload_before_the_first_word_offers_the_message_again(start: Any, visit: Visit) -> None:
    asked, may_speak = threading.Event(), threading.Event()

    def answer(messages: Any, params: Any) -> Iterator[str]:
        asked.set()
        while not may_speak.wait(0.01):
            yield ""
        yield "here it is"

    server = await start(ChatStream(engine=answer))
    chat = Chat(await visit(server.url))
    await chat.send("Hello")
    await until(asked.is_set)
    await chat.page.reload()
    await expect(chat.unsent).to_have_text("Hello")
    may_speak.set()
    await chat.page.get_by_role("button", name="Send again").click()
    await chat.see_turns("Hello", "here it is")


async def test_a_second_tab_shows_the_answer_that_is_under_way_and_can_stop_it(
    start: Any, visit: Visit, stepper: Any
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    chat = Chat(await visit(server.url))
    await chat.send("Count")
    engine.allow(2)
    await expect(chat.answer()).to_have_text("1 2")
    second = Chat(await chat.page.context.new_page())
    await second.page.goto(server.url)
    await second.see_state("running")
    await expect(second.answer()).to_have_text("1 2")
    engine.allow(1)
    await expect(second.answer()).to_have_text("1 2 3")
    await second.stop_button.click()
    await until(lambda: server.stopping)
    engine.allow(1)
    await second.see_state("interrupted")
    await chat.see_state("interrupted")


async def test_another_tab_that_is_open_shows_what_is_said_in_this_one(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    second = Chat(await chat.page.context.new_page())
    await second.page.goto(chat.page.url)
    await chat.ask("one")
    await second.see_turns("one", "one")


async def test_what_a_server_has_forgotten_is_told(visit: Visit) -> None:
    async with running_server(ChatStream(engine=repeats)) as first:
        chat = Chat(await visit(first.url))
        await chat.ask("one")
        gone = chat.page.get_by_text("This conversation is no longer available.")
        await expect(gone).to_be_hidden()
    async with running_server(ChatStream(engine=repeats), port=first.port):
        await chat.page.reload()
        await expect(gone).to_be_visible()
        await chat.ask("two")
        await expect(gone).to_be_hidden()
        await chat.page.locator("#new-chat").click()
        await expect(chat.page.locator("#welcome")).to_be_visible()
        await expect(gone).to_be_hidden()


async def test_what_was_said_elsewhere_is_not_overwritten(start: Any, visit: Visit) -> None:
    server = await start(ChatStream(engine=repeats))
    chat = Chat(await visit(server.url))
    await chat.ask("one")
    said = await chat.page.context.request.post(f"{server.url}/chat_stream", data={"user_input": "two"})
    assert await said.text() == "two"
    await chat.send("late")
    await expect(chat.refusal).to_have_attribute("data-code", "conversation_changed")
    await chat.see_turns("one", "one", "two", "two")
    await expect(chat.unsent).to_have_text("late")
    await chat.page.get_by_role("button", name="Send again").click()
    await chat.see_turns("one", "one", "two", "two", "late", "late")


async def test_a_connection_that_breaks_in_mid_answer_leaves_what_was_said(
    start: Any, visit: Visit, stepper: Any
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    chat = Chat(await visit(server.url))
    await chat.send("Count")
    engine.allow(2)
    await expect(chat.answer()).to_have_text("1 2")
    break_connections(server)
    await until(lambda: server.stopping)  # otherwise the next step could be one more of a running answer
    engine.allow(1)
    await chat.see_state("interrupted")
    await expect(chat.answer()).to_contain_text("1 2")
    engine.allow(100)
    await expect(chat.page.get_by_role("button", name="Continue")).to_be_visible()


async def test_without_a_network_the_message_waits_and_is_sent_when_it_is_back(start: Any, visit: Visit) -> None:
    server = await start(ChatStream(engine=repeats))
    chat = Chat(await visit(server.url))
    await chat.ask("one")
    await chat.page.context.set_offline(True)
    await chat.send("two")
    await expect(chat.refusal).to_have_attribute("data-code", "unreachable")
    await expect(chat.unsent).to_have_text("two")
    await chat.page.context.set_offline(False)
    await chat.page.get_by_role("button", name="Send again").click()
    await chat.see_turns("one", "one", "two", "two")


async def test_drafts_are_kept_for_each_conversation(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    await chat.ask("first conversation")
    await chat.write("draft of the first")
    await chat.page.get_by_role("button", name="New chat").first.click()
    await expect(chat.message).to_have_value("")
    await chat.ask("second conversation")
    await chat.write("draft of the second")
    await chat.page.reload()
    await expect(chat.message).to_have_value("draft of the second")
    await chat.page.locator("#conversations").get_by_text("first conversation").click()
    await expect(chat.message).to_have_value("draft of the first")
    await chat.see_turns("first conversation", "first conversation")


async def test_ten_turns_in_an_encrypted_cookie_survive_a_reload_and_a_restart_of_the_server(visit: Visit) -> None:
    key = Fernet.generate_key().decode()
    said = [text for number in range(10) for text in [f"message {number}"] * 2]

    def server(port: int = 0) -> Any:
        return running_server(ChatStream(engine=repeats), EncryptedCookieStorage(key, samesite="Lax"), port=port)

    async with server() as first:
        chat = Chat(await visit(first.url))
        for number in range(9):
            await chat.ask(f"message {number}")
        await chat.page.reload()
        await chat.see_turns(*said[:-2])
        async with chat.page.expect_response("**/commit") as committed:
            await chat.ask("message 9")
        assert (await committed.value).status == 200
    async with server(first.port):
        await chat.page.reload()
        await chat.see_turns(*said)
        await chat.ask("after the restart")
        await chat.see_turns(*said, *["after the restart"] * 2)
    for cookie in await chat.page.context.cookies():
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")


async def test_over_the_cookies_budget_the_oldest_turns_go_and_that_is_told(start: Any, visit: Visit) -> None:
    key = Fernet.generate_key().decode()
    server = await start(ChatStream(engine=repeats), EncryptedCookieStorage(key, samesite="Lax"))
    chat = Chat(await visit(server.url))
    for number in range(6):
        # does not get shorter by compression
        text = "".join(chr(0x4E00 + (place * 7919 * (number + 3)) % 20000) for place in range(300))
        await chat.send(f"{number} {text}")
        await expect(chat.answer()).to_have_text(f"{number} {text}")
        await chat.see_state("complete")
    await expect(chat.page.get_by_text("The oldest messages were dropped").first).to_be_visible()
    await expect(chat.said(0)).not_to_contain_text("0 ")
    await expect(chat.said()).to_contain_text("5 ")
    count = await chat.turns.count()
    assert 0 < count < 6
    await chat.page.reload()
    await expect(chat.turns).to_have_count(count)


async def test_what_no_cookie_can_hold_is_told(start: Any, visit: Visit) -> None:
    server = await start(ChatStream(engine=repeats), CookieStorage(Fernet.generate_key()))
    chat = Chat(await visit(server.url))
    await chat.send("short")
    await chat.see_state("complete")
    await chat.send("".join(chr(0x4E00 + (place * 7919) % 20000) for place in range(3000)))
    await expect(chat.page.get_by_text("too long to be saved").first).to_be_visible()
    await chat.page.reload()
    await chat.see_turns("short", "short")


async def test_an_answer_that_broke_off_is_told_to_the_cookie_too(start: Any, visit: Visit, stepper: Any) -> None:
    engine = stepper(fail_at=1)
    server = await start(ChatStream(engine=engine, max_new_tokens=2), CookieStorage(Fernet.generate_key()))
    chat = Chat(await visit(server.url))
    engine.allow(2)
    async with chat.page.expect_response("**/commit") as committed:
        await chat.send("Count")
    assert (await committed.value).status == 200
    await expect(chat.refusal).to_contain_text("The answer failed")


def break_connections(server: Server) -> None:
    """Cut each connection, as a network does."""
    assert server.runner.server is not None
    for protocol in server.runner.server.connections:
        if protocol.transport is not None:
            protocol.transport.abort()
