"""Tests of two ChatStreams in one application, separated by their namespaces."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from cryptography.fernet import Fernet

from aiochatstream import ChatStream, Conversation, GenerationParams, MemoryStorage
from aiochatstream.errors import SessionsNotSetUp
from aiochatstream.sessions.session_storage import MAX_COOKIE_BYTES
from tests.helpers import Client, browser, echo, serving, sse_events
from tests.sessions.test_user_session import Database

KEY = Fernet.generate_key()


def shout(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
    yield messages[-1]["content"].upper()


def storage(kind: str) -> aiohttp_session.AbstractStorage:
    return MemoryStorage() if kind == "memory" else EncryptedCookieStorage(Fernet(KEY), samesite="Lax")


@asynccontextmanager
async def two(
    how: str, kind: str, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Client, Client]]:
    """Yield a user's clients of two ChatStreams in one app, under /a and /b."""
    app = web.Application()
    aiohttp_session.setup(app, storage(kind))
    first_stream = ChatStream(engine=echo, **(first or {"namespace": "a"}))
    second_stream = ChatStream(engine=shout, **(second or {"namespace": "b"}))
    for prefix, chat_stream in (("/a", first_stream), ("/b", second_stream)):
        if how == "one app":
            app.add_routes(chat_stream.routes(prefix=prefix))
            chat_stream.setup(app)
        else:
            inner = web.Application()
            chat_stream.add_endpoints(inner)
            app.add_subapp(prefix, inner)
    async with serving(app) as url, browser(url) as client:
        yield Client(client.session, f"{url}/a"), Client(client.session, f"{url}/b")


both_ways = pytest.mark.parametrize("how", ["one app", "sub-apps"])
both_kinds = pytest.mark.parametrize("kind", ["memory", "cookie"])


@pytest.mark.parametrize("namespaces", [("a", "b"), ("a", ""), ("", "b")])
async def test_commit_tokens_of_another_namespace_are_refused(namespaces: tuple[str, str]) -> None:
    options = [{"namespace": namespace} for namespace in namespaces]
    async with two("one app", "cookie", *options) as (first, second):
        async with first.post(accept="text/event-stream", user_input="hi") as response:
            token = [event async for event in sse_events(response)][-1][1]["commit"]
        for client, status in ((second, 409), (first, 200)):
            async with client.post("/commit", commit=token) as response:
                assert response.status == status
        assert await first.texts() == ["hi", "hi "]
        assert await second.texts() == []


@both_ways
@both_kinds
async def test_namespaces_separate_conversations_of_the_same_name(how: str, kind: str) -> None:
    async with two(how, kind) as (first, second):
        await first.say("first")
        await second.say("second")
        await first.say("third")
        assert await first.texts() == ["first", "first ", "third", "third "]
        assert await second.texts() == ["second", "SECOND"]
        async with first.post("/clear_context") as response:
            assert (await response.json())["success"] is True
        assert await first.texts() == []
        assert await second.texts() == ["second", "SECOND"]
        again = await second.say(regenerate=True)
        assert await second.texts() == ["second", "SECOND"]
        assert (await second.history())[1]["message_id"] == again["message_id"]


async def test_both_namespaces_fit_into_a_full_cookie() -> None:
    async with two("one app", "cookie") as (first, second):
        for number in range(12):
            await first.say(f"{number} " + "".join(chr(0x4E00 + number * 500 + place) for place in range(400)))
        for number in range(12):
            await second.say(f"{number} " + "".join(chr(0x4E00 + number * 400 + place) for place in range(300)))
            (cookie,) = first.session.cookie_jar
            assert len(cookie.OutputString()) <= MAX_COOKIE_BYTES
        assert (await first.texts())[-1].startswith("11 ")
        assert (await second.texts())[-1].startswith("11 ")


@both_kinds
async def test_a_role_is_granted_in_one_namespace_only(kind: str) -> None:
    def options(namespace: str) -> dict[str, Any]:
        roles = {
            "user": {"apis": {"allow": ["chat_stream"], "auth_method": "nothing"}},
            "admin": {"apis": {"allow": "all", "auth_method": "ui_pass_phrase", "ui_pass_phrase": namespace * 3}},
        }
        return {"namespace": namespace, "client_roles": roles}

    async def may_see(client: Client) -> bool:
        async with client.session.get(f"{client.url}/get_load") as response:
            return bool(response.status == 200)

    async with two("sub-apps", kind, options("a"), options("b")) as (first, second):
        assert (await first.say("aaa"))["text"] == "New role: 'admin' has been granted"
        assert (await may_see(first), await may_see(second)) == (True, False)
        assert (await second.say("bbb"))["text"] == "New role: 'admin' has been granted"
        assert (await may_see(first), await may_see(second)) == (True, True)


async def test_a_shared_store_receives_the_namespace() -> None:
    database = Database()
    options = [{"namespace": name, "conversation_store": database} for name in ("", "b")]
    async with two("one app", "memory", *options) as (first, second):
        await first.say("first")
        await second.say("second")
        users, names = {user for user, _ in database.rows}, {name for _, name in database.rows}
        assert (len(users), names) == (1, {"main", "b/main"})
        assert all(Conversation.from_dict(row).turns for row in database.rows.values())


async def test_the_same_namespace_twice_in_one_app_is_an_error_at_startup() -> None:
    with pytest.raises(SessionsNotSetUp, match=r"Two ChatStreams .* the same namespace ''. .* ChatStream\(namespace="):
        async with two("one app", "memory", {"name": "a"}, {"name": "b"}):
            pass


async def test_the_same_namespace_twice_in_sub_apps_is_an_error_at_the_first_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two("sub-apps", "cookie", {"name": "a"}, {"name": "b"}) as (first, second):
        await first.say("first")
        for _ in range(2):
            async with second.post(user_input="second") as response:
                assert response.status == 500
                assert "ChatStream(namespace='...')" in (await response.json())["detail"]
        assert "Two ChatStreams use the same sessions" in caplog.text
        assert await first.texts() == ["first", "first "]


async def test_sub_apps_with_separate_sessions_need_no_namespace(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    app = web.Application()
    for prefix, engine in (("/a", echo), ("/b", shout)):
        inner, chat_stream = web.Application(), ChatStream(engine=engine)
        aiohttp_session.setup(inner, MemoryStorage(cookie_name=prefix[1:]))
        chat_stream.add_endpoints(inner)
        app.add_subapp(prefix, inner)
    async with serving(app) as url, browser(url) as client:
        first, second = Client(client.session, f"{url}/a"), Client(client.session, f"{url}/b")
        await first.say("first")
        await second.say("second")
        assert await first.texts() == ["first", "first "]
        assert await second.texts() == ["second", "SECOND"]
    assert not caplog.records


@pytest.mark.parametrize("namespace", ["a/b", "x" * 65, "a b", "a\n", None, 5])
def test_an_invalid_namespace_is_a_value_error(namespace: Any) -> None:
    with pytest.raises(ValueError, match="namespace: must be empty or 1 to 64 of"):
        ChatStream(engine=echo, namespace=namespace)


async def test_a_chat_stream_can_be_reused_after_a_failed_startup() -> None:
    chat_stream = ChatStream(engine=echo)
    for with_sessions in (False, True):
        app = web.Application()
        if with_sessions:
            aiohttp_session.setup(app, MemoryStorage())
        chat_stream.add_endpoints(app)
        runner = web.AppRunner(app)
        if with_sessions:
            await runner.setup()
        else:
            with pytest.raises(SessionsNotSetUp):
                await runner.setup()
        await runner.cleanup()
