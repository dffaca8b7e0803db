"""Renewal of sessions at a login: the old identity gives no access to later messages."""

from __future__ import annotations

import logging
from collections.abc import Callable

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from cryptography.fernet import Fernet

from aiochatstream import ChatStream, ConversationStore, CookieStorage, MemoryConversationStore, MemoryStorage
from tests.helpers import Client, ClientOf, StartServer, browser, echo, serving, sse_events

KEY = Fernet.generate_key()


def app_with_login(storage: AbstractStorage, store: ConversationStore | None = None) -> web.Application:
    chat_stream = ChatStream(engine=echo, conversation_store=store)
    app = web.Application()
    aiohttp_session.setup(app, storage)
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)

    async def login(request: web.Request) -> web.Response:
        (await aiohttp_session.get_session(request))["login"] = "anna"
        await chat_stream.renew_session(request)
        return web.Response()

    async def who(request: web.Request) -> web.Response:
        return web.Response(text=(await aiohttp_session.get_session(request)).get("login", "nobody"))

    app.router.add_post("/login", login)
    app.router.add_get("/who", who)
    return app


APPS: dict[str, Callable[[], web.Application]] = {
    "memory": lambda: app_with_login(MemoryStorage()),
    "cookie": lambda: app_with_login(CookieStorage(KEY)),
    "aiohttp-session's cookie": lambda: app_with_login(EncryptedCookieStorage(Fernet(KEY))),
    "cookie and a store": lambda: app_with_login(CookieStorage(KEY), MemoryConversationStore()),
}

with_each_storage = pytest.mark.parametrize("make", APPS.values(), ids=APPS)


async def log_in(client: Client, headers: dict[str, str] | None = None) -> None:
    async with client.session.post(f"{client.url}/login", headers=headers) as response:
        assert response.status == 200


async def who(client: Client) -> str:
    async with client.session.get(f"{client.url}/who") as response:
        return await response.text()


def cookies(client: Client) -> dict[str, str]:
    return {cookie.key: cookie.value for cookie in client.session.cookie_jar}


@with_each_storage
async def test_after_a_login_the_conversation_is_hidden_from_the_old_identity(
    make: Callable[[], web.Application],
) -> None:
    async with serving(make()) as url, browser(url) as client, browser(url) as thief:
        await client.say("before")
        thief.session.cookie_jar.update_cookies(cookies(client))
        assert await thief.texts() == ["before", "before "]
        await log_in(client)
        async with client.post(accept="text/event-stream", user_input="after") as response:
            assert [name async for name, _ in sse_events(response)][-1] == "done"
        assert await client.texts() == ["before", "before ", "after", "after "]
        assert await who(client) == "anna"
        assert await who(thief) == "nobody"
        assert "after" not in await thief.texts()
        await thief.say("planted")
        assert "planted" not in await client.texts()
        async with client.post("/clear_context") as response:
            assert response.status == 200
        assert await client.texts() == []


@with_each_storage
async def test_a_streamed_answer_is_preserved_by_a_login(make: Callable[[], web.Application]) -> None:
    async with serving(make()) as url, browser(url) as client:
        async with client.post(accept="text/plain", user_input="before") as response:
            await response.read()
        await log_in(client)
        assert await client.texts() == ["before", "before "]


@with_each_storage
async def test_a_login_before_the_first_message_starts_a_conversation(make: Callable[[], web.Application]) -> None:
    async with serving(make()) as url, browser(url) as client:
        await log_in(client)
        for text in ("one", "two"):
            await client.say(text)
        assert await client.texts() == ["one", "one ", "two", "two "]
        assert await who(client) == "anna"


async def test_a_login_with_the_agent_header_renews_the_session() -> None:
    async with serving(APPS["memory"]()) as url, browser(url) as client, browser(url) as thief:
        await client.say("before")
        thief.session.cookie_jar.update_cookies(cookies(client))
        await log_in(client, {"X-FastSession-Skip": "skip"})
        await client.say("after")
        assert await thief.texts() == []


async def test_after_a_login_only_the_users_commit_tokens_are_accepted() -> None:
    async with serving(APPS["cookie"]()) as url, serving(APPS["cookie"]()) as other, browser(url) as client:
        async with client.post(accept="text/event-stream", user_input="before") as response:
            token = [event async for event in sse_events(response)][-1][1]["commit"]
        stolen = cookies(client)
        client = Client(client.session, other)
        await log_in(client)
        async with client.session.get(f"{other}/history") as response:
            assert (await response.json())["error"] == "answer_elsewhere"
        async with client.post("/commit", commit=token) as response:
            assert response.status == 200
        assert await client.texts() == ["before", "before "]
        async with browser(url) as thief:
            thief.session.cookie_jar.update_cookies(stolen)
            async with thief.post(accept="text/event-stream", user_input="planted") as response:
                planted = [event async for event in sse_events(response)][-1][1]["commit"]
        await client.say("after")
        async with client.post("/commit", commit=planted) as response:
            assert response.status == 409
        assert await client.texts() == ["before", "before ", "after", "after "]


@pytest.mark.parametrize(
    ("host", "secure", "warns"),
    [
        ("chat.example", False, True),
        ("10.0.0.5:8080", False, True),
        ("chat.example", True, False),
        ("localhost:8080", False, False),
        ("127.0.0.1", False, False),
        ("[::1]:8080", False, False),
    ],
)
async def test_a_cookie_sent_over_plain_http_is_logged_once(
    start: StartServer, client_of: ClientOf, caplog: pytest.LogCaptureFixture, host: str, secure: bool, warns: bool
) -> None:
    server = await start(ChatStream(engine=echo, allowed_hosts=["chat.example"]), MemoryStorage(secure=secure))
    client = client_of(server)
    with caplog.at_level(logging.WARNING, "aiochatstream"):
        for _ in range(2):
            async with client.session.get(f"{server.url}/history", headers={"Host": host}) as response:
                assert response.status == 200
    warnings = [record.message for record in caplog.records if "plain HTTP" in record.message]
    assert len(warnings) == int(warns)
    assert all(host in warning for warning in warnings)
