"""Storages of sessions on the server, and users of them."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp_session import AbstractStorage

from aiochatstream import MemoryStorage
from aiochatstream.sessions.redis_storage import RedisStorage
from tests.sessions.users import NewStorage, NewUser, User, invalidate, recall, remember


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.slow)])
def new_storage(request: pytest.FixtureRequest) -> NewStorage:
    """Return a function that returns a storage of sessions on the server, of each kind in turn."""
    if request.param == "memory":
        return MemoryStorage
    return functools.partial(RedisStorage, request.getfixturevalue("redis"))


@pytest.fixture
async def new_user() -> AsyncIterator[NewUser]:
    """Yield a function that returns a new user of a server with a storage."""
    async with AsyncExitStack() as stack:
        servers: dict[AbstractStorage, TestServer] = {}

        async def make(storage: AbstractStorage) -> User:
            if storage not in servers:
                app = web.Application()
                aiohttp_session.setup(app, storage)
                app.add_routes([web.get(f"/{handler.__name__}", handler) for handler in (remember, recall, invalidate)])
                server = servers[storage] = TestServer(app)
                await server.start_server()
                stack.push_async_callback(server.close)
            # not entered as a context, which would close the server that users share
            client: TestClient[Any, Any] = TestClient(servers[storage])
            stack.push_async_callback(client.session.close)
            return User(client)

        yield make
