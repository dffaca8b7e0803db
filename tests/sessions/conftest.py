"""Storages and stores of every kind, and users of them."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp_session import AbstractStorage

from aiochatstream import ConversationStore, MemoryConversationStore, MemoryStorage
from aiochatstream.conversations.redis_store import RedisConversationStore
from aiochatstream.sessions.redis_storage import RedisStorage
from tests.sessions.users import User, invalidate, recall, remember

NewUser = Callable[[AbstractStorage], Awaitable[User]]


@pytest.fixture(params=["memory", "redis"])
def new_storage(request: pytest.FixtureRequest) -> Callable[..., AbstractStorage]:
    """``new_storage(**options)`` gives a session storage on the server, of each kind in turn."""
    if request.param == "memory":
        return MemoryStorage
    return functools.partial(RedisStorage, request.getfixturevalue("redis"))


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> ConversationStore:
    """An empty store of conversations, of each kind in turn."""
    if request.param == "memory":
        return MemoryConversationStore()
    return RedisConversationStore(request.getfixturevalue("redis"))


@pytest.fixture
async def new_user() -> AsyncIterator[NewUser]:
    """``await new_user(storage)`` gives one more user of a server with these sessions."""
    async with AsyncExitStack() as stack:
        servers: dict[AbstractStorage, TestServer] = {}

        async def make(storage: AbstractStorage) -> User:
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
