"""Users of requests: sessions and accounts of the application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from http.cookies import SimpleCookie
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from cryptography.fernet import Fernet

from aiochatstream import ChatStream, Conversation, ConversationStore, GenerationParams, MemoryStorage
from aiochatstream.errors import ConversationChanged, SessionsNotSetUp
from tests.helpers import ClientOf, MakeStepper, StartServer, browser, echo, running_server, serving, until


async def test_an_application_without_sessions_does_not_start() -> None:
    app = web.Application()
    ChatStream(engine=echo).setup(app)
    runner = web.AppRunner(app)
    with pytest.raises(SessionsNotSetUp, match=r"aiohttp_session\.setup"):
        await runner.setup()
    await runner.cleanup()


@pytest.mark.parametrize("parent_has_sessions", [True, False])
async def test_a_subapplication_without_sessions_is_a_500_at_the_first_request(
    parent_has_sessions: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app, sub = web.Application(), web.Application()
    if parent_has_sessions:
        aiohttp_session.setup(app, MemoryStorage())
    chat_stream = ChatStream(engine=echo)
    sub.add_routes(chat_stream.routes())
    chat_stream.setup(sub)
    app.add_subapp("/chat", sub)
    async with (
        serving(app) as url,
        browser(url) as client,
        client.post("/chat/chat_stream", user_input="hi") as response,
    ):
        body = await response.text()
        if parent_has_sessions:
            assert (response.status, body) == (200, "hi ")
        else:
            assert response.status == 500
            assert "aiohttp_session.setup" in body
            assert "aiohttp_session.setup" in caplog.text


async def test_session_keys_of_the_application_are_preserved() -> None:
    app = web.Application()
    storage = MemoryStorage()
    aiohttp_session.setup(app, storage)
    chat_stream = ChatStream(engine=echo)
    chat_stream.setup(app)

    async def stream(request: web.Request) -> web.StreamResponse:
        session = await aiohttp_session.get_session(request)
        session["visits"] = session.get("visits", 0) + 1
        return await chat_stream.handle_chat_stream_request(request)

    async def visits(request: web.Request) -> web.Response:
        session = await aiohttp_session.get_session(request)
        return web.json_response({"visits": session.get("visits"), "keys": sorted(session)})

    app.router.add_post("/chat_stream", stream)
    app.router.add_get("/visits", visits)
    async with serving(app) as url, browser(url) as client:
        for _ in range(3):
            async with client.post(user_input="hi") as response:
                assert await response.text() == "hi "
        async with client.session.get(f"{url}/visits") as response:
            assert await response.json() == {"visits": 3, "keys": ["aiochatstream", "visits"]}


async def test_reading_endpoints_create_no_session(start: StartServer, client_of: ClientOf) -> None:
    storage = MemoryStorage()
    server = await start(ChatStream(engine=echo), storage)
    for path in ("/history", "/get_load", "/healthz", "/readyz"):
        async with client_of(server).session.get(server.url + path) as response:
            assert response.status == 200
            assert "Set-Cookie" not in response.headers
    assert len(storage) == 0


async def test_the_cookie_contains_only_a_random_id(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=echo))
    async with client_of(server).post(user_input="hi") as response:
        value = response.headers["Set-Cookie"]
    name, _, rest = value.partition("=")
    identity, *attributes = rest.split("; ")
    assert (name, len(identity)) == ("AIOHTTP_SESSION", 43)
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(attributes)


class Database(ConversationStore):
    """A store of an application."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}

    async def load(self, user_id: str, name: str) -> Conversation | None:
        row = self.rows.get((user_id, name))
        return None if row is None else Conversation.from_dict(row)

    async def save(self, user_id: str, name: str, conversation: Conversation, *, expected_number: int) -> None:
        row = self.rows.get((user_id, name))
        if row is not None and row["number"] != expected_number:
            raise ConversationChanged("changed by another process")
        self.rows[user_id, name] = conversation.to_dict()

    async def forget(self, user_id: str, name: str) -> bool:
        return self.rows.pop((user_id, name), None) is not None


async def test_conversations_can_be_in_a_store_of_the_application(start: StartServer, client_of: ClientOf) -> None:
    database = Database()
    server = await start(ChatStream(engine=echo, conversation_store=database), SimpleCookieStorage())
    client = client_of(server)
    await client.say("one")
    await client.say("two")
    (row,) = database.rows.values()
    assert [turn["user"] for turn in row["turns"]] == ["one", "two"]
    assert await client.texts() == ["one", "one ", "two", "two "]


async def test_a_concurrent_change_in_the_store_is_not_overwritten(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    database, engine = Database(), stepper()
    server = await start(
        ChatStream(engine=engine, conversation_store=database, params=GenerationParams(max_new_tokens=1))
    )
    client = client_of(server)
    engine.allow(1)
    await client.say("one")
    (row,) = database.rows.values()
    row["number"] = 5
    engine.allow(1)
    await client.say("two")
    row = next(iter(database.rows.values()))
    assert row["number"] == 6

    async def load_then_change(user_id: str, name: str) -> Conversation | None:
        loaded = await Database.load(database, user_id, name)
        database.rows[user_id, name]["number"] = 9
        return loaded

    database.load = load_then_change  # type: ignore[method-assign]
    engine.allow(1)
    async with client.post(accept="application/json", user_input="three") as response:
        assert response.status == 409
        assert (await response.json())["error"] == "conversation_changed"
    assert [turn["user"] for turn in database.rows.popitem()[1]["turns"]] == ["one", "two"]


async def test_session_changes_of_the_application_after_the_answer_are_saved() -> None:
    # the session object of the application is the one that is saved
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream = ChatStream(engine=echo)
    chat_stream.setup(app)

    async def stream(request: web.Request) -> web.StreamResponse:
        session = await aiohttp_session.get_session(request)
        response = await chat_stream.handle_chat_stream_request(request)
        session["answers"] = session.get("answers", 0) + 1
        response.headers["X-Answers"] = str(session["answers"])
        return response

    app.router.add_post("/chat_stream", stream)
    async with serving(app) as url, browser(url) as client:
        for count in ("1", "2", "3"):
            async with client.post(accept="application/json", user_input="hi") as response:
                assert response.headers["X-Answers"] == count


async def test_concurrent_first_messages_of_a_session_have_one_user(stepper: MakeStepper) -> None:
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    engine = stepper()
    chat_stream = ChatStream(engine=engine, params=GenerationParams(max_new_tokens=1))
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)

    async def login(request: web.Request) -> web.Response:
        (await aiohttp_session.get_session(request))["login"] = "anna"
        return web.Response()

    app.router.add_post("/login", login)
    async with serving(app) as url, browser(url) as client:
        async with client.post("/login") as response:
            assert response.status == 200

        async def ask(name: str) -> None:
            async with client.post(accept="text/event-stream", user_input=name, conversation=name) as response:
                await response.read()

        asking = [asyncio.create_task(ask(name)) for name in ("a", "b")]
        await until(lambda: len(engine.calls) == 2)  # the headers of both were sent, but no answer
        engine.allow(2)
        await asyncio.gather(*asking)
        assert await client.texts("a") == ["a", "1 "]
        assert await client.texts("b") == ["b", "1 "]


@asynccontextmanager
async def app_with_accounts(storage: AbstractStorage) -> AsyncIterator[str]:
    """Yield the URL of an application with accounts, in the header Account. Requests without it have a session only."""

    async def account(request: web.Request) -> Any:
        name = request.headers.get("Account")
        if name == "banned":
            raise web.HTTPUnauthorized
        return {"number": 5, "empty": ""}.get(str(name), name)

    app = web.Application()
    aiohttp_session.setup(app, storage)
    ChatStream(engine=echo, identify_user=account).add_endpoints(app)
    async with serving(app) as url:
        yield url


@pytest.mark.parametrize("in_cookie", [False, True])
async def test_an_account_has_the_same_conversations_in_all_of_its_sessions_only(in_cookie: bool) -> None:
    storage: AbstractStorage = EncryptedCookieStorage(Fernet(Fernet.generate_key())) if in_cookie else MemoryStorage()
    async with app_with_accounts(storage) as url, AsyncExitStack() as stack:
        ann, ann_again, bob, guest = [await stack.enter_async_context(browser(url)) for _ in range(4)]
        for client, name in ((ann, "Ann"), (ann_again, "Ann"), (bob, "Bob")):
            client.session.headers["Account"] = name
        await ann.say("one")
        await ann_again.say("two")
        await guest.say("three")
        assert await ann.texts() == await ann_again.texts() == ["one", "one ", "two", "two "]
        assert await bob.texts() == []
        assert await guest.texts() == ["three", "three "]
        guest.session.headers["Account"] = "Ann"  # logs in
        assert await guest.texts() == await ann.texts()
        del guest.session.headers["Account"]  # and out
        assert await guest.texts() == ["three", "three "]


@pytest.mark.parametrize("data", [5, {"id": 5}, {"id": "x", "was": 5}, {"id": "x", "was": [5, {}]}, {"was": ["x"]}])
async def test_invalid_data_in_an_unencrypted_cookie_is_ignored(
    start: StartServer, client_of: ClientOf, data: object
) -> None:
    client = client_of(await start(ChatStream(engine=echo), SimpleCookieStorage()))
    cookie = SimpleCookie({"AIOHTTP_SESSION": json.dumps({"session": {"aiochatstream": data}})})
    client.session.headers["Cookie"] = cookie.output(header="").strip()
    await client.say("hi")
    async with client.post("/clear_context") as response:
        assert response.status == 200


RANDOM = "k" * 43


@pytest.mark.parametrize(
    ("account", "forged"),
    [
        ("Ann", {"id": "Ann"}),
        ("Ann", {"id": RANDOM, "was": ["Ann"]}),
        (RANDOM, {"id": RANDOM}),
        (RANDOM, {"id": "_" * 43, "was": [RANDOM]}),
        (RANDOM, {"id": f"account:{RANDOM}"}),
    ],
)
async def test_an_unencrypted_cookie_cannot_read_an_accounts_conversation(
    account: str, forged: dict[str, object]
) -> None:
    async with app_with_accounts(SimpleCookieStorage()) as url, browser(url) as owner, browser(url) as guest:
        owner.session.headers["Account"] = account
        await owner.say("secret")
        cookie = SimpleCookie({"AIOHTTP_SESSION": json.dumps({"session": {"aiochatstream": forged}})})
        guest.session.headers["Cookie"] = cookie.output(header="").strip()
        assert await guest.texts() == []
        assert await owner.texts() == ["secret", "secret "]


async def test_account_names_never_collide() -> None:
    names = [RANDOM, f"account:{RANDOM}", f"account:account:{RANDOM}"]
    async with app_with_accounts(MemoryStorage()) as url, browser(url) as client:
        for name in names:
            client.session.headers["Account"] = name
            assert await client.texts() == []
            await client.say(name)


async def test_no_account_has_the_console_conversation() -> None:
    async def account(request: web.Request) -> str:
        return "console"

    chat_stream = ChatStream(engine=echo, identify_user=account)
    async with running_server(chat_stream) as server, browser(server.url) as client:
        assert [text async for text, _, _ in chat_stream.handle_console_input("secret")]
        assert await client.texts() == []


async def test_an_invalid_account_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async with app_with_accounts(MemoryStorage()) as url, browser(url) as client:
        for name, status in (("banned", 401), ("number", 500), ("empty", 500)):
            for path in ("/chat_stream", "/clear_context", "/chat_stream/stop", "/set_generation_params"):
                client.session.headers["Account"] = name
                async with client.post(path, user_input="hi") as response:
                    assert response.status == status
    assert "identify_user: must return a non-empty string or None, not ''" in caplog.text
