"""Servers that die, hang or restart, and proxies that answer for them: no message is lost, and none is sent twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from cryptography.fernet import Fernet
from playwright.async_api import Page, Route, expect

from aiochatstream import ChatStream
from tests.helpers import running_server, serving, until
from tests.page.chat_page import Chat, repeats
from tests.page.conftest import Visit
from tests.page.stalling_proxy import held_proxy
from tests.processes import PYTHON, Process, ask_when_listening, free_port, running
from tests.redis_server import running_redis

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

LOGIN = "<!doctype html><title>Log in</title><form><input name=password></form>"


@contextmanager
def slow_server(port: int, folder: Path, *redis: str) -> Iterator[Process]:
    """A server process that says one word of each answer."""
    with running([PYTHON, "-m", "tests.page.slow_server", str(port), *redis], folder) as process:
        ask_when_listening(process, f"http://127.0.0.1:{port}/healthz")
        yield process


@pytest.mark.parametrize("reloads", [False, True], ids=["", "with a reload"])
async def test_a_message_whose_server_was_killed_is_offered_again(visit: Visit, tmp_path: Path, reloads: bool) -> None:
    port = free_port()
    with slow_server(port, tmp_path / "first") as server:
        chat = Chat(await visit(f"http://127.0.0.1:{port}"))
        await chat.send("Hello")
        await expect(chat.answer()).to_have_text("one")
        server.end(signal.SIGKILL)
        await chat.see_state("interrupted")
        await expect(chat.refusal).to_contain_text("The server cannot be reached.")
        await expect(chat.said()).to_have_text("Hello")
    with slow_server(port, tmp_path / "second"):
        if reloads:
            await chat.page.reload()
        await expect(chat.unsent).to_have_text("Hello")
        await chat.page.get_by_role("button", name="Send again").click()
        await expect(chat.answer()).to_have_text("one")
        await expect(chat.unsent).to_have_count(0)


async def test_a_message_that_a_shutdown_has_stored_is_not_offered_again(visit: Visit, tmp_path: Path) -> None:
    port = free_port()
    with running_redis(tmp_path / "redis") as redis:
        with slow_server(port, tmp_path / "first", redis.url) as server:
            chat = Chat(await visit(f"http://127.0.0.1:{port}"))
            await chat.send("Hello")
            await expect(chat.answer()).to_have_text("one")
            server.end(signal.SIGTERM)
            await expect(chat.refusal).to_contain_text("The server cannot be reached.")
        with slow_server(port, tmp_path / "second", redis.url):
            await expect(chat.refusal).to_have_count(0)
            await chat.see_turns("Hello", "one")
            await chat.page.reload()
            await chat.see_turns("Hello", "one")
            await expect(chat.unsent).to_have_count(0)


async def test_a_connection_that_dies_without_a_word_ends_after_missed_heartbeats(
    start: Any, visit: Visit, stepper: Any
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    async with held_proxy(server.port) as proxy:
        chat = Chat(await visit(proxy.url))
        await chat.page.clock.install()
        await chat.page.reload()
        await chat.send("Count")
        engine.allow(2)
        await expect(chat.answer()).to_have_text("1 2")
        proxy.hold()
        await chat.page.clock.run_for(29_000)
        await chat.see_state("writing")
        await chat.page.clock.run_for(12_000)
        await chat.see_state("interrupted")
        await expect(chat.answer()).to_have_text("1 2")


async def test_stop_stops_what_is_shown_though_the_connection_is_dead(start: Any, visit: Visit, stepper: Any) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    async with held_proxy(server.port) as proxy:
        chat = Chat(await visit(proxy.url))
        await chat.send("Count")
        engine.allow(2)
        await expect(chat.answer()).to_have_text("1 2")
        proxy.hold()
        await chat.page.route("**/chat_stream/stop", never)
        await chat.stop_button.click()
        await chat.see_state("interrupted")
        await expect(chat.send_button).to_be_visible()
        await expect(chat.answer()).to_have_text("1 2")


async def never(route: Route) -> None:
    """Answer nothing."""


GATEWAY = {
    "bad gateway": {"status": 502, "body": "<html>nginx</html>", "content_type": "text/html"},
    "gateway timeout": {"status": 504, "body": "upstream request timeout", "content_type": "text/plain"},
    "no backend": {"status": 404, "body": "404 page not found\n", "content_type": "text/plain"},
    "empty": {"status": 200, "body": ""},
    "service unavailable": {"status": 503, "body": "", "headers": {"Retry-After": "Sun, 06 Nov 2033 08:49:37 GMT"}},
}


@pytest.mark.parametrize("way", [*GATEWAY, "connectionrefused", "connectionreset", "timedout", "failed"])
async def test_a_restart_is_waited_for_however_a_proxy_shows_it(start: Any, visit: Visit, way: str) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    await chat.ask("one")
    down = True

    async def restarting(route: Route) -> None:
        if not down:
            await route.continue_()
        elif way in GATEWAY:
            await route.fulfill(**GATEWAY[way])  # type: ignore[arg-type]
        else:
            await route.abort(way)

    await chat.page.route("**/history*", restarting)
    await chat.page.reload()
    await expect(chat.refusal).to_be_visible()
    down = False
    await chat.see_turns("one", "one")
    await expect(chat.refusal).to_have_count(0)


async def test_a_message_is_sent_again_by_itself_after_a_gateway_error(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    await chat.page.route("**/chat_stream", lambda route: route.fulfill(status=502, body="<html>"), times=1)
    await chat.send("one")
    await expect(chat.countdown).to_contain_text("Retrying in")
    await chat.see_turns("one", "one")


LOGINS = {
    "page": {"status": 200, "body": LOGIN, "content_type": "text/html"},
    "redirect": {"status": 302, "headers": {"Location": "https://login.example/"}},
    "forbidden": {"status": 403, "body": LOGIN, "content_type": "text/html"},
    "unauthorized": {"status": 401, "body": ""},
    "json": {"status": 200, "body": '{"login": "/login"}', "content_type": "application/json"},
    "list": {"status": 200, "body": "[]", "content_type": "application/json"},
    "cut off": {"status": 200, "body": '{"turn": 1, "mess', "content_type": "application/json"},
}


async def log_out(page: Page, login: str) -> None:
    """From now on a proxy answers in the server's place."""

    async def answer(route: Route) -> None:
        if route.request.resource_type == "fetch":
            await route.fulfill(**LOGINS[login])  # type: ignore[arg-type]
        else:
            await route.continue_()

    await page.route("**/*", answer)


@pytest.mark.parametrize("login", LOGINS)
async def test_a_login_page_in_place_of_the_server_is_told_and_led_to(start: Any, visit: Visit, login: str) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    await chat.ask("one")
    await log_out(chat.page, login)
    await chat.send("two")
    await expect(chat.refusal).to_contain_text("You may need to log in")
    await expect(chat.unsent).to_have_text("two")
    await chat.see_turns("one", "one")
    await chat.page.locator("#open-settings").click()
    await chat.page.reload()
    await expect(chat.refusal).to_contain_text("You may need to log in")
    await expect(chat.message).to_be_visible()
    await chat.page.unroute("**/*")
    await chat.page.get_by_role("button", name="Reload the page").click()
    await chat.see_turns("one", "one")
    await expect(chat.unsent).to_have_text("two")


async def test_a_commit_token_outlives_a_restart_of_the_server_and_a_reload(visit: Visit) -> None:
    key = Fernet.generate_key().decode()
    chat_stream, app = ChatStream(engine=repeats), web.Application()
    aiohttp_session.setup(app, EncryptedCookieStorage(key, samesite="Lax"))
    app.add_routes(chat_stream.routes(exclude=["commit", "history"]))  # one that goes before it can seal the answer
    chat_stream.setup(app)
    async with AsyncExitStack() as stack:
        async with serving(app) as url:
            proxy = await stack.enter_async_context(held_proxy(int(url.rsplit(":", 1)[1])))
            chat = Chat(await visit(proxy.url))
            await chat.ask("one")
        storage = EncryptedCookieStorage(key, samesite="Lax")
        second = await stack.enter_async_context(running_server(ChatStream(engine=repeats), storage))
        proxy.port = second.port
        await chat.page.reload()
        await chat.see_turns("one", "one")
        await expect(chat.refusal).to_have_count(0)
        assert "commit" not in await chat.page.evaluate("Object.keys(localStorage).join()")


async def test_a_restart_in_mid_answer_loses_that_answer_and_no_more_of_a_cookies_conversation(
    visit: Visit, stepper: Any
) -> None:
    key = Fernet.generate_key().decode()
    engine = stepper()

    def server() -> Any:
        return running_server(ChatStream(engine=engine, max_new_tokens=4), EncryptedCookieStorage(key, samesite="Lax"))

    async with AsyncExitStack() as stack:
        async with server() as first:
            proxy = await stack.enter_async_context(held_proxy(first.port))
            chat = Chat(await visit(proxy.url))
            engine.allow(8)
            for text in ("one", "two"):
                async with chat.page.expect_response("**/commit"):
                    await chat.ask(text)
            await chat.send("three")
            engine.allow(2)
            await expect(chat.answer()).to_have_text("1 2")
            proxy.hold()
            engine.allow(10)
        second = await stack.enter_async_context(server())
        proxy.port = second.port
        proxy.cut()
        await chat.page.get_by_role("button", name="Continue without the lost answer").click()
        await chat.see_turns("one", "1 2 3 4", "two", "1 2 3 4")
        await expect(chat.unsent).to_have_text("three")
        await chat.page.get_by_role("button", name="Send again").click()
        await chat.see_turns("one", "1 2 3 4", "two", "1 2 3 4", "three", "1 2 3 4")


async def test_one_goes_on_without_an_answer_that_no_server_has(start: Any, visit: Visit) -> None:
    chat = Chat(await visit((await start(ChatStream(engine=repeats))).url))
    await chat.ask("one")
    lost = True

    async def worker(route: Route) -> None:
        nonlocal lost
        request = route.request
        lost = lost and "abandon_lost" not in request.url and "abandon_lost" not in (request.post_data or "")
        if lost:
            await route.fulfill(status=409, json={"error": "answer_elsewhere", "detail": "held elsewhere"})
        else:
            await route.continue_()

    await chat.page.route("**/history*", worker)
    await chat.page.route("**/chat_stream", worker)
    await chat.page.reload()
    go_on = chat.page.get_by_role("button", name="Continue without the lost answer")
    await go_on.click()
    await chat.see_turns("one", "one")
    lost = True
    await chat.send("two")
    await expect(chat.unsent).to_have_text("two")
    await go_on.click()
    await chat.see_turns("one", "one", "two", "two")
    await expect(chat.refusal).to_have_count(0)


async def test_six_answers_in_one_browser_leave_connections_for_the_rest(
    start: Any, visit: Visit, stepper: Any
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=8))
    chat = Chat(await visit(server.url))
    second = Chat(await chat.page.context.new_page())
    await second.page.goto(server.url)
    for tab in (chat, second):
        for number in range(3):
            await tab.page.locator("#new-chat").click()
            await tab.send(f"Count {number}")
            await until(lambda: engine.calls)
    await expect(second.page.locator("#notices")).to_contain_text("4 answers are running in this browser.")
    third = Chat(await chat.page.context.new_page())
    await third.page.goto(server.url)
    assert await third.page.evaluate("fetch('history?conversation=third').then((response) => response.status)") == 200
    assert engine.most_running == 4
    await chat.stop_button.click()
    await chat.see_state("interrupted")
    engine.allow(20)
    await until(lambda: len(engine.calls) == 5)
    await asyncio.gather(*(page.close() for page in chat.page.context.pages))
