"""Persistence over reloads, tabs, lost connections and server restarts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

import pytest
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from cryptography.fernet import Fernet
from playwright.async_api import Route, expect

from aiochatstream import ChatStream, CookieStorage, GenerationParams
from tests.helpers import Server, running_server, until
from tests.page.chat_page import ChatPage
from tests.page.engines import Messages, echo_chunks
from tests.page.fixtures import MakeStepper, StartServer, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])


async def test_users_see_only_their_own_conversations(start: StartServer, visit: Visit) -> None:
    server = await start(ChatStream(engine=echo_chunks))
    anna, bert = ChatPage(await visit(server.url)), ChatPage(await visit(server.url))
    await anna.ask("I am Anna")
    await bert.ask("I am Bert")
    await anna.ask("Anna again")
    for chat, texts in ((anna, ["I am Anna"] * 2 + ["Anna again"] * 2), (bert, ["I am Bert"] * 2)):
        await chat.expect_turns(*texts)
        await chat.page.reload()
        await chat.expect_turns(*texts)


async def test_reload_during_an_answer_shows_it_as_interrupted(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    chat = ChatPage(await visit(server.url))
    await chat.send("Count")
    engine.allow(2)
    await expect(chat.answer()).to_have_text("1 2")
    await chat.write("a draft")
    await chat.page.reload()
    await expect(chat.user_message()).to_have_text("Count")
    await expect(chat.message).to_have_value("a draft")
    engine.allow(5)
    await chat.expect_state("interrupted")
    await expect(chat.answer()).to_contain_text("1 2")
    assert len(engine.calls) == 1


async def test_reload_before_the_first_token_offers_the_message_again(start: StartServer, visit: Visit) -> None:
    requested, may_answer = threading.Event(), threading.Event()

    def answer(messages: Messages, params: GenerationParams) -> Iterator[str]:
        requested.set()
        while not may_answer.wait(0.01):
            yield ""
        yield "the answer"

    server = await start(ChatStream(engine=answer))
    chat = ChatPage(await visit(server.url))
    await chat.send("Hello")
    await until(requested.is_set)
    await chat.page.reload()
    await expect(chat.unsent).to_have_text("Hello")
    may_answer.set()
    await chat.page.get_by_role("button", name="Send again").click()
    await chat.expect_turns("Hello", "the answer")


async def test_second_tab_shows_a_running_answer_and_can_stop_it(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    chat = ChatPage(await visit(server.url))
    await chat.send("Count")
    engine.allow(2)
    await expect(chat.answer()).to_have_text("1 2")
    second = ChatPage(await chat.page.context.new_page())
    await second.page.goto(server.url)
    await second.expect_state("running")
    await expect(second.answer()).to_have_text("1 2")
    engine.allow(1)
    await expect(second.answer()).to_have_text("1 2 3")
    await second.stop_button.click()
    await until(lambda: server.stopping)
    engine.allow(1)
    await second.expect_state("interrupted")
    await chat.expect_state("interrupted")


async def test_open_tab_shows_turns_of_another_tab(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    second = ChatPage(await chat.page.context.new_page())
    await second.page.goto(chat.page.url)
    await chat.ask("one")
    await second.expect_turns("one", "one")


async def test_conversation_that_the_server_lost_is_reported(visit: Visit) -> None:
    async with running_server(ChatStream(engine=echo_chunks)) as first:
        chat = ChatPage(await visit(first.url))
        await chat.ask("one")
        gone = chat.page.get_by_text("This conversation is no longer available.")
        await expect(gone).to_be_hidden()
    async with running_server(ChatStream(engine=echo_chunks), port=first.port):
        await chat.page.reload()
        await expect(gone).to_be_visible()
        await chat.ask("two")
        await expect(gone).to_be_hidden()
        await chat.page.locator("#new-chat").click()
        await expect(chat.page.locator("#welcome")).to_be_visible()
        await expect(gone).to_be_hidden()


async def test_message_is_refused_if_the_conversation_changed_elsewhere(start: StartServer, visit: Visit) -> None:
    server = await start(ChatStream(engine=echo_chunks))
    chat = ChatPage(await visit(server.url))
    await chat.ask("one")
    response = await chat.page.context.request.post(f"{server.url}/chat_stream", data={"user_input": "two"})
    assert await response.text() == "two"
    await chat.send("late")
    await expect(chat.refusal).to_have_attribute("data-code", "conversation_changed")
    await chat.expect_turns("one", "one", "two", "two")
    await expect(chat.unsent).to_have_text("late")
    await chat.page.get_by_role("button", name="Send again").click()
    await chat.expect_turns("one", "one", "two", "two", "late", "late")


async def test_lost_connection_keeps_the_partial_answer(start: StartServer, visit: Visit, stepper: MakeStepper) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    chat = ChatPage(await visit(server.url))
    await chat.send("Count")
    engine.allow(2)
    await expect(chat.answer()).to_have_text("1 2")
    abort_connections(server)
    await until(lambda: server.stopping)  # otherwise the next step could still belong to the running answer
    engine.allow(1)
    await chat.expect_state("interrupted")
    await expect(chat.answer()).to_contain_text("1 2")
    engine.allow(100)
    await expect(chat.page.get_by_role("button", name="Continue")).to_be_visible()


async def test_offline_message_can_be_sent_again_when_online(start: StartServer, visit: Visit) -> None:
    server = await start(ChatStream(engine=echo_chunks))
    chat = ChatPage(await visit(server.url))
    await chat.ask("one")
    await chat.page.context.set_offline(True)
    await chat.send("two")
    await expect(chat.refusal).to_have_attribute("data-code", "unreachable")
    await expect(chat.unsent).to_have_text("two")
    await chat.page.context.set_offline(False)
    await chat.page.get_by_role("button", name="Send again").click()
    await chat.expect_turns("one", "one", "two", "two")


async def test_late_history_does_not_hide_a_newer_answer(start: StartServer, visit: Visit) -> None:
    server = await start(ChatStream(engine=echo_chunks))
    chat = ChatPage(await visit(server.url))
    await chat.ask("one")
    requested, released, requests = asyncio.Event(), asyncio.Event(), list[str]()

    async def late(route: Route) -> None:
        requests.append(route.request.url)
        response = await route.fetch()
        requested.set()
        await released.wait()
        await route.fulfill(response=response)

    await chat.page.route("**/history*", late)
    await chat.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await requested.wait()
    await chat.ask("two")
    released.set()
    await until(lambda: len(requests) == 2)  # the first response is outdated
    await chat.expect_turns("one", "one", "two", "two")


async def test_drafts_are_stored_per_conversation(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
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
    await chat.expect_turns("first conversation", "first conversation")


async def test_encrypted_cookie_history_survives_a_reload_and_a_server_restart(visit: Visit) -> None:
    key = Fernet.generate_key().decode()
    turns = [text for number in range(10) for text in [f"message {number}"] * 2]

    def server(port: int = 0) -> AbstractAsyncContextManager[Server]:
        return running_server(ChatStream(engine=echo_chunks), EncryptedCookieStorage(key, samesite="Lax"), port=port)

    async with server() as first:
        chat = ChatPage(await visit(first.url))
        for number in range(9):
            await chat.ask(f"message {number}")
        await chat.page.reload()
        await chat.expect_turns(*turns[:-2])
        async with chat.page.expect_response("**/commit") as response:
            await chat.ask("message 9")
        assert (await response.value).status == 200
    async with server(first.port):
        await chat.page.reload()
        await chat.expect_turns(*turns)
        await chat.ask("after the restart")
        await chat.expect_turns(*turns, *["after the restart"] * 2)
    for cookie in await chat.page.context.cookies():
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")


async def test_full_cookie_drops_the_oldest_turns_and_shows_a_notice(start: StartServer, visit: Visit) -> None:
    key = Fernet.generate_key().decode()
    server = await start(ChatStream(engine=echo_chunks), EncryptedCookieStorage(key, samesite="Lax"))
    chat = ChatPage(await visit(server.url))
    for number in range(6):
        # random characters: compression does not shorten them
        text = "".join(chr(0x4E00 + (place * 7919 * (number + 3)) % 20000) for place in range(300))
        await chat.send(f"{number} {text}")
        await expect(chat.answer()).to_have_text(f"{number} {text}")
        await chat.expect_state("complete")
    await expect(chat.page.get_by_text("The oldest messages were dropped").first).to_be_visible()
    await expect(chat.user_message(0)).not_to_contain_text("0 ")
    await expect(chat.user_message()).to_contain_text("5 ")
    count = await chat.turns.count()
    assert 0 < count < 6
    await chat.page.reload()
    await expect(chat.turns).to_have_count(count)


async def test_turn_too_long_for_the_cookie_shows_a_notice(start: StartServer, visit: Visit) -> None:
    server = await start(ChatStream(engine=echo_chunks), CookieStorage(Fernet.generate_key()))
    chat = ChatPage(await visit(server.url))
    await chat.send("short")
    await chat.expect_state("complete")
    await chat.send("".join(chr(0x4E00 + (place * 7919) % 20000) for place in range(3000)))
    await expect(chat.page.get_by_text("too long to be saved").first).to_be_visible()
    await chat.page.reload()
    await chat.expect_turns("short", "short")


async def test_failed_answer_is_committed_to_the_cookie(start: StartServer, visit: Visit, stepper: MakeStepper) -> None:
    engine = stepper(fail_at=1)
    server = await start(
        ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)), CookieStorage(Fernet.generate_key())
    )
    chat = ChatPage(await visit(server.url))
    engine.allow(2)
    async with chat.page.expect_response("**/commit") as response:
        await chat.send("Count")
    assert (await response.value).status == 200
    await chat.expect_state("interrupted")
    await chat.page.reload()
    await chat.expect_turns("Count", "1")


def abort_connections(server: Server) -> None:
    """Abort all connections of ``server``."""
    assert server.runner.server is not None
    for protocol in server.runner.server.connections:
        if protocol.transport is not None:
            protocol.transport.abort()
