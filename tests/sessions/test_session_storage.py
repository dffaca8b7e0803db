"""Storages of sessions on the server: the interface, with each implementation."""

from __future__ import annotations

import asyncio
import re

import aiohttp_session
import pytest
from aiohttp import web

from tests.helpers import browser, serving
from tests.sessions.users import COOKIE, NewStorage, NewUser, cookie_of


async def test_the_cookie_is_a_random_id_hidden_from_scripts_and_other_sites(
    new_user: NewUser, new_storage: NewStorage
) -> None:
    storage = new_storage()
    cookies = [cookie_of(await (await new_user(storage)).remember("blue")) for _ in range(2)]
    for cookie in cookies:
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", cookie.value)
        assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", "/")
        assert not cookie["secure"]
    assert cookies[0].value != cookies[1].value


async def test_the_cookie_has_the_configured_attributes(new_user: NewUser, new_storage: NewStorage) -> None:
    storage = new_storage(cookie_name="OTHER", secure=True, samesite="Strict", max_age=60, path="/remember")
    cookie = (await (await new_user(storage)).remember("blue")).cookies["OTHER"]
    assert (cookie["secure"], cookie["samesite"], cookie["max-age"]) == (True, "Strict", "60")
    assert (cookie["path"], cookie["httponly"]) == ("/remember", True)


async def test_each_user_has_a_separate_session(new_user: NewUser, new_storage: NewStorage) -> None:
    storage = new_storage()
    users = [await new_user(storage) for _ in range(3)]
    ids = [cookie_of(await user.remember(note)).value for user, note in zip(users, ("a", "日本"), strict=False)]
    assert [await user.recalls() for user in users] == ["a", "日本", "nothing"]
    assert cookie_of(await users[0].remember("b")).value == ids[0]
    assert [await user.recalls() for user in users] == ["b", "日本", "nothing"]


async def test_an_empty_session_sets_no_cookie(new_user: NewUser, new_storage: NewStorage) -> None:
    storage = new_storage()
    response = await (await new_user(storage)).recall()
    assert COOKIE not in response.cookies


@pytest.mark.parametrize("unknown", ["A" * 43, "x", "", "../../etc", "%00"])
async def test_an_unknown_id_is_never_adopted(new_user: NewUser, new_storage: NewStorage, unknown: str) -> None:
    storage = new_storage()
    identity = cookie_of(await (await new_user(storage)).remember("mine", cookie=unknown)).value
    assert identity != unknown
    assert len(identity) == 43
    other = await new_user(storage)
    assert await other.recalls(cookie=unknown) == "nothing"
    assert await other.recalls(cookie=identity) == "mine"


async def test_an_emptied_session_and_its_cookie_are_deleted(new_user: NewUser, new_storage: NewStorage) -> None:
    storage = new_storage()
    user = await new_user(storage)
    old = cookie_of(await user.remember("blue")).value
    deleted = cookie_of(await user.invalidate())
    assert (deleted.value, deleted["max-age"], deleted["path"]) == ("", "0", "/")
    assert await (await new_user(storage)).recalls(cookie=old) == "nothing"
    assert cookie_of(await user.remember("red")).value != old


async def test_an_earlier_request_does_not_restore_a_deleted_session(
    new_user: NewUser, new_storage: NewStorage
) -> None:
    loaded, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        session = await aiohttp_session.get_session(request)
        if not session.empty:
            loaded.set()
            await go_on.wait()
        session["note"] = "slow"
        return web.Response()

    async def log_out(request: web.Request) -> web.Response:
        (await aiohttp_session.get_session(request)).invalidate()
        return web.Response()

    storage = new_storage()
    app = web.Application()
    aiohttp_session.setup(app, storage)
    app.add_routes([web.post("/slow", slow), web.post("/log_out", log_out)])
    async with serving(app) as url, browser(url) as user:
        await user.post("/slow")
        [old] = [cookie.value for cookie in user.session.cookie_jar]
        late = asyncio.create_task(user.session.post(f"{url}/slow"))
        await loaded.wait()
        await user.post("/log_out")
        go_on.set()
        assert "Set-Cookie" not in (await late).headers
    assert await (await new_user(storage)).recalls(cookie=old) == "nothing"
