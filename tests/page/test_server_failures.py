"""Servers that crash, hang or restart, and errors of proxies: no message is lost or sent twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from pathlib import Path
from typing import TypedDict

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from cryptography.fernet import Fernet
from playwright.async_api import Page, Route, expect

from aiochatstream import ChatStream, GenerationParams
from tests.helpers import Server, running_server, serving, until
from tests.page.chat_page import ChatPage
from tests.page.engines import echo_chunks
from tests.page.fixtures import MakeStepper, StartServer, Visit
from tests.page.stalling_proxy import stalling_proxy
from tests.processes import PYTHON, Process, ask_when_listening, free_port, running
from tests.redis_server import running_redis

pytestmark = pytest.mark.asyncio(loop_scope="session", loop_factories=["asyncio"])

LOGIN = "<!doctype html><title>Log in</title><form><input name=password></form>"


@contextmanager
def slow_server(port: int, folder: Path, *redis: str) -> Iterator[Process]:
    """Run a server process whose answers never end."""
    with running([PYTHON, "-m", "tests.page.slow_server", str(port), *redis], folder, forked=True) as process:
        ask_when_listening(process, f"http://127.0.0.1:{port}/healthz")
        yield process


@pytest.mark.parametrize("reloads", [False, True], ids=["", "with a reload"])
async def test_message_is_offered_again_after_its_server_was_killed(
    visit: Visit, tmp_path: Path, reloads: bool
) -> None:
    port = free_port()
    with slow_server(port, tmp_path / "first") as server:
        chat = ChatPage(await visit(f"http://127.0.0.1:{port}"))
        await chat.send("Hello")
        await expect(chat.answer()).to_have_text("one")
        server.end(signal.SIGKILL)
        await chat.expect_state("interrupted")
        await expect(chat.refusal).to_contain_text("The server cannot be reached.")
        await expect(chat.user_message()).to_have_text("Hello")
    with slow_server(port, tmp_path / "second"):
        if reloads:
            await chat.page.reload()
        await expect(chat.unsent).to_have_text("Hello")
        await chat.page.get_by_role("button", name="Send again").click()
        await expect(chat.answer()).to_have_text("one")
        await expect(chat.unsent).to_have_count(0)


async def test_message_stored_by_a_shutdown_is_not_offered_again(visit: Visit, tmp_path: Path) -> None:
    port = free_port()
    with running_redis(tmp_path / "redis") as redis:
        with slow_server(port, tmp_path / "first", redis.url) as server:
            chat = ChatPage(await visit(f"http://127.0.0.1:{port}"))
            await chat.send("Hello")
            await expect(chat.answer()).to_have_text("one")
            server.end(signal.SIGTERM)
            await expect(chat.refusal).to_contain_text("The server cannot be reached.")
        with slow_server(port, tmp_path / "second", redis.url):
            await expect(chat.refusal).to_have_count(0)
            await chat.expect_turns("Hello", "one")
            await chat.page.reload()
            await chat.expect_turns("Hello", "one")
            await expect(chat.unsent).to_have_count(0)


async def test_stalled_connection_ends_after_missed_heartbeats(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    async with stalling_proxy(server.port) as proxy:
        chat = ChatPage(await visit(proxy.url, clock=True))
        await chat.send("Count")
        engine.allow(2)
        await expect(chat.answer()).to_have_text("1 2")
        proxy.stall()
        await chat.page.clock.run_for(29_000)
        await chat.expect_state("writing")
        await chat.page.clock.run_for(12_000)
        await chat.expect_state("interrupted")
        await expect(chat.answer()).to_have_text("1 2")


async def test_stop_works_on_a_stalled_connection(start: StartServer, visit: Visit, stepper: MakeStepper) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    async with stalling_proxy(server.port) as proxy:
        chat = ChatPage(await visit(proxy.url))
        await chat.send("Count")
        engine.allow(2)
        await expect(chat.answer()).to_have_text("1 2")
        proxy.stall()
        await chat.page.route("**/chat_stream/stop", ignore)
        await chat.stop_button.click()
        await chat.expect_state("interrupted")
        await expect(chat.send_button).to_be_visible()
        await expect(chat.answer()).to_have_text("1 2")


async def ignore(route: Route) -> None:
    """Leave the request without a response."""


class Reply(TypedDict, total=False):
    """Arguments of ``route.fulfill``."""

    status: int
    body: str
    content_type: str
    headers: dict[str, str]


GATEWAY_ERRORS: dict[str, Reply] = {
    "bad gateway": {"status": 502, "body": "<html>nginx</html>", "content_type": "text/html"},
    "gateway timeout": {"status": 504, "body": "upstream request timeout", "content_type": "text/plain"},
    "no backend": {"status": 404, "body": "404 page not found\n", "content_type": "text/plain"},
    "empty": {"status": 200, "body": ""},
    "service unavailable": {"status": 503, "body": "", "headers": {"Retry-After": "Sun, 06 Nov 2033 08:49:37 GMT"}},
}


ABORTS = ("connectionrefused", "connectionreset", "timedout", "failed")


async def test_history_is_retried_after_gateway_errors(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url, clock=True))
    page = chat.page
    await chat.ask("one")
    failure: str | None = None

    async def restarting(route: Route) -> None:
        if failure is None:
            await route.continue_()
        elif failure in GATEWAY_ERRORS:
            await route.fulfill(**GATEWAY_ERRORS[failure])
        else:
            await route.abort(failure)

    await page.route("**/history*", restarting)
    for failure in (*GATEWAY_ERRORS, *ABORTS):
        await page.reload()
        await expect(chat.refusal, failure).to_be_visible()
        failure = None
        await page.clock.fast_forward(5_000)
        await chat.expect_turns("one", "one")
        await expect(chat.refusal).to_have_count(0)


async def test_message_is_retried_after_a_gateway_error(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url, clock=True))
    await chat.page.route("**/chat_stream", lambda route: route.fulfill(status=502, body="<html>"), times=1)
    await chat.send("one")
    await expect(chat.countdown).to_contain_text("Retrying in")
    await chat.page.clock.fast_forward(5_000)
    await chat.expect_turns("one", "one")


LOGINS: dict[str, Reply] = {
    "page": {"status": 200, "body": LOGIN, "content_type": "text/html"},
    "redirect": {"status": 302, "headers": {"Location": "https://login.example/"}},
    "forbidden": {"status": 403, "body": LOGIN, "content_type": "text/html"},
    "unauthorized": {"status": 401, "body": ""},
    "json": {"status": 200, "body": '{"login": "/login"}', "content_type": "application/json"},
    "list": {"status": 200, "body": "[]", "content_type": "application/json"},
    "cut off": {"status": 200, "body": '{"turn": 1, "mess', "content_type": "application/json"},
}


async def log_out(page: Page, login: str) -> None:
    """Answer all fetches as a proxy that requires a login does."""

    async def answer(route: Route) -> None:
        if route.request.resource_type == "fetch":
            await route.fulfill(**LOGINS[login])
        else:
            await route.continue_()

    await page.route("**/*", answer)


async def test_login_page_of_a_proxy_is_reported_with_a_reload_button(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    await chat.ask("one")
    for login in LOGINS:
        await log_out(chat.page, login)
        if login == next(iter(LOGINS)):
            await chat.send("two")
        else:
            await chat.page.get_by_role("button", name="Send again").click()
        await expect(chat.refusal, login).to_contain_text("You may need to log in")
        await expect(chat.unsent).to_have_text("two")
        await chat.expect_turns("one", "one")
        await chat.page.locator("#open-settings").click()
        await chat.page.reload()
        await expect(chat.refusal, login).to_contain_text("You may need to log in")
        await expect(chat.message).to_be_visible()
        await chat.page.unroute("**/*")
        await chat.page.get_by_role("button", name="Reload the page").click()
        await chat.expect_turns("one", "one")
        await expect(chat.unsent, login).to_have_text("two")


async def test_commit_token_survives_a_server_restart_and_a_reload(visit: Visit) -> None:
    key = Fernet.generate_key().decode()
    chat_stream, app = ChatStream(engine=echo_chunks), web.Application()
    aiohttp_session.setup(app, EncryptedCookieStorage(key, samesite="Lax"))
    app.add_routes(chat_stream.routes(exclude=["commit", "history"]))  # the server ends before the commit
    chat_stream.setup(app)
    async with AsyncExitStack() as stack:
        async with serving(app) as url:
            proxy = await stack.enter_async_context(stalling_proxy(int(url.rsplit(":", 1)[1])))
            chat = ChatPage(await visit(proxy.url))
            await chat.ask("one")
        storage = EncryptedCookieStorage(key, samesite="Lax")
        second = await stack.enter_async_context(running_server(ChatStream(engine=echo_chunks), storage))
        proxy.port = second.port
        await chat.page.reload()
        await chat.expect_turns("one", "one")
        await expect(chat.refusal).to_have_count(0)
        assert "commit" not in await chat.page.evaluate("Object.keys(localStorage).join()")


async def test_restart_during_an_answer_loses_only_that_answer_of_a_cookie_history(
    visit: Visit, stepper: MakeStepper
) -> None:
    key = Fernet.generate_key().decode()
    engine = stepper()

    def server() -> AbstractAsyncContextManager[Server]:
        return running_server(
            ChatStream(engine=engine, params=GenerationParams(max_new_tokens=4)),
            EncryptedCookieStorage(key, samesite="Lax"),
        )

    async with AsyncExitStack() as stack:
        async with server() as first:
            proxy = await stack.enter_async_context(stalling_proxy(first.port))
            chat = ChatPage(await visit(proxy.url))
            engine.allow(8)
            for text in ("one", "two"):
                async with chat.page.expect_response("**/commit"):
                    await chat.ask(text)
            await chat.send("three")
            engine.allow(2)
            await expect(chat.answer()).to_have_text("1 2")
            proxy.stall()
            engine.allow(10)
        second = await stack.enter_async_context(server())
        proxy.port = second.port
        proxy.disconnect()
        await chat.page.get_by_role("button", name="Continue without the lost answer").click()
        await chat.expect_turns("one", "1 2 3 4", "two", "1 2 3 4")
        await expect(chat.unsent).to_have_text("three")
        await chat.page.get_by_role("button", name="Send again").click()
        await chat.expect_turns("one", "1 2 3 4", "two", "1 2 3 4", "three", "1 2 3 4")


async def test_user_can_continue_without_a_lost_answer(start: StartServer, visit: Visit) -> None:
    chat = ChatPage(await visit((await start(ChatStream(engine=echo_chunks))).url))
    await chat.ask("one")
    lost = True

    async def answer_elsewhere(route: Route) -> None:
        nonlocal lost
        request = route.request
        lost = lost and "abandon_lost" not in request.url and "abandon_lost" not in (request.post_data or "")
        if lost:
            await route.fulfill(status=409, json={"error": "answer_elsewhere", "detail": "on another worker"})
        else:
            await route.continue_()

    await chat.page.route("**/history*", answer_elsewhere)
    await chat.page.route("**/chat_stream", answer_elsewhere)
    await chat.page.reload()
    continue_button = chat.page.get_by_role("button", name="Continue without the lost answer")
    await continue_button.click()
    await chat.expect_turns("one", "one")
    lost = True
    await chat.send("two")
    await expect(chat.unsent).to_have_text("two")
    await continue_button.click()
    await chat.expect_turns("one", "one", "two", "two")
    await expect(chat.refusal).to_have_count(0)


async def test_stream_limit_leaves_connections_for_other_requests(
    start: StartServer, visit: Visit, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=8))
    chat = ChatPage(await visit(server.url))
    second = ChatPage(await chat.page.context.new_page())
    await second.page.goto(server.url)
    for tab in (chat, second):
        for number in range(3):
            await tab.page.locator("#new-chat").click()
            await tab.send(f"Count {number}")
            await until(lambda: engine.calls)
    await expect(second.page.locator("#notices")).to_contain_text("4 answers are running in this browser.")
    third = ChatPage(await chat.page.context.new_page())
    await third.page.goto(server.url)
    assert await third.page.evaluate("fetch('history?conversation=third').then((response) => response.status)") == 200
    assert engine.most_running == 4
    await chat.stop_button.click()
    await chat.expect_state("interrupted")
    engine.allow(20)
    await until(lambda: len(engine.calls) == 5)
    await asyncio.gather(*(tab.page.close() for tab in (chat, second, third)))
