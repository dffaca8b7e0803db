"""Sessions and conversations in memory: cookies over a real server, and the store."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from http.cookies import Morsel
from typing import Any

import aiohttp
import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from aiochatstream import Conversation, MemoryConversationStore, MemoryStorage, Turn
from aiochatstream.errors import ConversationChanged

COOKIE = "AIOHTTP_SESSION"


async def remember(request: web.Request) -> web.Response:
    session = await aiohttp_session.get_session(request)
    session["note"] = request.query["note"]
    return web.Response()


async def recall(request: web.Request) -> web.Response:
    session = await aiohttp_session.get_session(request)
    return web.Response(text=session.get("note", "nothing"))


async def invalidate(request: web.Request) -> web.Response:
    (await aiohttp_session.get_session(request)).invalidate()
    return web.Response()


class User:
    """A client with a cookie jar of its own."""

    def __init__(self, client: TestClient[Any, Any]) -> None:
        self._client = client

    async def remember(self, note: str, cookie: str | None = None) -> aiohttp.ClientResponse:
        return await self._get("/remember", cookie, note=note)

    async def recall(self, cookie: str | None = None) -> aiohttp.ClientResponse:
        return await self._get("/recall", cookie)

    async def recalls(self, cookie: str | None = None) -> str:
        return await (await self.recall(cookie)).text()

    async def invalidate(self) -> aiohttp.ClientResponse:
        return await self._get("/invalidate", None)

    async def _get(self, path: str, cookie: str | None, **query: str) -> aiohttp.ClientResponse:
        """``cookie`` is an id that this user sends besides those that were given out to it."""
        headers = None if cookie is None else {"Cookie": f"{COOKIE}={cookie}"}
        return await self._client.get(path, params=query, headers=headers)


NewUser = Callable[[MemoryStorage], Awaitable[User]]


@pytest.fixture
async def new_user() -> AsyncIterator[NewUser]:
    """``await new_user(storage)`` gives one more user of a server with these sessions."""
    async with AsyncExitStack() as stack:
        servers: dict[MemoryStorage, TestServer] = {}

        async def make(storage: MemoryStorage) -> User:
            if storage not in servers:
                app = web.Application()
                aiohttp_session.setup(app, storage)
                app.add_routes([web.get(f"/{do.__name__}", do) for do in (remember, recall, invalidate)])
                servers[storage] = await stack.enter_async_context(TestServer(app))
            # not entered as a context, which would close the server that users share
            client: TestClient[Any, Any] = TestClient(servers[storage])
            stack.push_async_callback(client.session.close)
            return User(client)

        yield make


def cookie_of(response: aiohttp.ClientResponse) -> Morsel[str]:
    return response.cookies[COOKIE]


async def test_the_cookie_is_a_random_id_that_scripts_and_other_sites_do_not_get(new_user: NewUser) -> None:
    storage = MemoryStorage()
    cookies = [cookie_of(await (await new_user(storage)).remember("blue")) for _ in range(2)]
    for cookie in cookies:
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", cookie.value)
        assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", "/")
        assert not cookie["secure"]
    assert cookies[0].value != cookies[1].value


async def test_the_cookie_is_as_the_app_wants_it(new_user: NewUser) -> None:
    storage = MemoryStorage(cookie_name="OTHER", secure=True, samesite="Strict", max_age=60, path="/remember")
    cookie = (await (await new_user(storage)).remember("blue")).cookies["OTHER"]
    assert (cookie["secure"], cookie["samesite"], cookie["max-age"]) == (True, "Strict", "60")
    assert (cookie["path"], cookie["httponly"]) == ("/remember", True)


async def test_each_user_has_a_session_of_ones_own(new_user: NewUser) -> None:
    storage = MemoryStorage()
    users = [await new_user(storage) for _ in range(3)]
    ids = [cookie_of(await user.remember(note)).value for user, note in zip(users, ("a", "日本"), strict=False)]
    assert [await user.recalls() for user in users] == ["a", "日本", "nothing"]
    assert cookie_of(await users[0].remember("b")).value == ids[0]
    assert [await user.recalls() for user in users] == ["b", "日本", "nothing"]
    assert len(storage) == 2


async def test_a_session_that_holds_nothing_is_neither_kept_nor_sent(new_user: NewUser) -> None:
    storage = MemoryStorage()
    response = await (await new_user(storage)).recall()
    assert COOKIE not in response.cookies
    assert len(storage) == 0


@pytest.mark.parametrize("unknown", ["A" * 43, "x", "", "../../etc", "%00"])
async def test_an_id_that_was_not_given_out_is_never_taken_over(new_user: NewUser, unknown: str) -> None:
    storage = MemoryStorage()
    given = cookie_of(await (await new_user(storage)).remember("mine", cookie=unknown)).value
    assert given != unknown
    assert len(given) == 43
    other = await new_user(storage)
    assert await other.recalls(cookie=unknown) == "nothing"
    assert await other.recalls(cookie=given) == "mine"


async def test_an_emptied_session_is_forgotten_and_its_cookie_deleted(new_user: NewUser) -> None:
    storage = MemoryStorage()
    user = await new_user(storage)
    old = cookie_of(await user.remember("blue")).value
    deleted = cookie_of(await user.invalidate())
    assert (deleted.value, deleted["max-age"], deleted["path"]) == ("", "0", "/")
    assert len(storage) == 0
    assert await (await new_user(storage)).recalls(cookie=old) == "nothing"
    assert cookie_of(await user.remember("red")).value != old


async def test_an_idle_session_is_forgotten_and_its_id_not_taken_over_again(new_user: NewUser) -> None:
    now = [0.0]
    storage = MemoryStorage(idle_seconds=60, clock=lambda: now[0])
    user = await new_user(storage)
    old = cookie_of(await user.remember("blue")).value
    now[0] = 60.0
    assert await user.recalls() == "blue"
    now[0] = 120.0
    assert await user.recalls() == "blue"
    now[0] = 181.0
    assert await user.recalls() == "nothing"
    assert cookie_of(await user.remember("red")).value != old


@pytest.mark.parametrize(
    "bound", [{"max_sessions": 2}, {"max_bytes": 2 * len('{"created": 1234567890, "session": {"note": "x"}}')}]
)
async def test_over_its_bounds_the_session_that_was_not_used_for_longest_goes(
    new_user: NewUser, bound: dict[str, Any]
) -> None:
    storage = MemoryStorage(**bound)
    first, second, third = [await new_user(storage) for _ in range(3)]
    await first.remember("1")
    await second.remember("2")
    assert await first.recalls() == "1"
    await third.remember("3")
    assert [await user.recalls() for user in (first, second, third)] == ["1", "nothing", "3"]
    assert len(storage) == 2


ONE = Conversation((Turn("日本の首都は？", "東京です。🗼", "id 1", "interrupted"),), number=1, begun="id 1")
TWO = ONE.begin("id 2").with_turn(Turn("And of France?", "Paris.", "id 2"))


async def test_a_conversation_is_kept_by_user_and_name() -> None:
    store = MemoryConversationStore()
    await store.save("Ann", "main", ONE, expected_number=0)
    await store.save("Ann", "other", TWO, expected_number=0)
    assert await store.load("Ann", "main") == ONE
    assert await store.load("Ann", "other") == TWO
    assert await store.load("Bob", "main") is None
    await store.save("Ann/main", "other", ONE, expected_number=0)  # an account of an app, and a name with a namespace
    assert await store.load("Ann", "main/other") is None
    assert len(store) == 3


async def test_a_save_that_expects_another_turn_number_raises_and_changes_nothing() -> None:
    store = MemoryConversationStore()
    await store.save("Ann", "main", ONE, expected_number=0)
    for wrong in (0, 2):
        with pytest.raises(ConversationChanged, match=f"is at turn 1, not {wrong}"):
            await store.save("Ann", "main", TWO, expected_number=wrong)
        assert await store.load("Ann", "main") == ONE
    await store.save("Ann", "main", TWO, expected_number=1)
    assert await store.load("Ann", "main") == TWO


async def test_where_nothing_is_kept_any_turn_number_is_right() -> None:
    store = MemoryConversationStore()
    await store.save("Ann", "main", TWO, expected_number=1)
    assert await store.load("Ann", "main") == TWO


async def test_forget_drops_that_one_conversation_and_tells_whether_there_was_one() -> None:
    store = MemoryConversationStore()
    await store.save("Ann", "main", ONE, expected_number=0)
    await store.save("Bob", "main", TWO, expected_number=0)
    assert await store.forget("Ann", "main")
    assert not await store.forget("Ann", "main")
    assert await store.load("Ann", "main") is None
    assert await store.load("Bob", "main") == TWO


async def test_the_store_keeps_within_its_bounds() -> None:
    now = [0.0]
    store = MemoryConversationStore(max_conversations=2, idle_seconds=60, clock=lambda: now[0])
    await store.save("Ann", "main", ONE, expected_number=0)
    await store.save("Bob", "main", ONE, expected_number=0)
    await store.load("Ann", "main")
    now[0] = 30.0
    await store.save("Cid", "main", ONE, expected_number=0)
    assert await store.load("Bob", "main") is None
    now[0] = 61.0
    assert await store.load("Ann", "main") is None
    assert await store.load("Cid", "main") == ONE
    small = MemoryConversationStore(max_bytes=300)
    for user in ("Ann", "Bob", "Cid"):
        await small.save(user, "main", ONE, expected_number=0)
    assert await small.load("Ann", "main") is None
    assert await small.load("Cid", "main") == ONE
