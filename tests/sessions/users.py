"""Users of a session storage on a real server, and types of the fixtures in conftest.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http.cookies import Morsel
from typing import Any

import aiohttp
import aiohttp_session
from aiohttp import web
from aiohttp.test_utils import TestClient
from aiohttp_session import AbstractStorage

from tests.helpers import Client, Server

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
        """Send a request; ``cookie`` is an id to send in addition to the cookies of the server."""
        headers = None if cookie is None else {"Cookie": f"{COOKIE}={cookie}"}
        return await self._client.get(path, params=query, headers=headers)


def cookie_of(response: aiohttp.ClientResponse) -> Morsel[str]:
    return response.cookies[COOKIE]


def moved(client: Client, server: Server) -> Client:
    """Return the same user, with the same cookies, at another worker."""
    return Client(client.session, server.url)


NewStorage = Callable[..., AbstractStorage]
"""Function that returns a storage of sessions on the server with the given options."""

NewUser = Callable[[AbstractStorage], Awaitable[User]]
"""Function that returns a new user of a server with the given storage."""
