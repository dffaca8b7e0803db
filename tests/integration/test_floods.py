"""Tests that clients who fill the memory for sessions and conversations do not evict those of other users."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp_session import get_session

from aiochatstream import ChatStream, MemoryConversationStore, MemoryStorage
from tests.helpers import Client, ClientOf, StartServer, browser, echo, serving

PLACES = 20
TIMES = 3 * PLACES
IMPORT: dict[str, Any] = {"messages": [{"role": "user", "content": "x" * 100}, {"role": "assistant", "content": "y"}]}


async def import_(url: str) -> None:
    async with browser(url) as stranger, stranger.post("/import", **IMPORT) as response:
        assert response.status == 200


async def set_params(url: str) -> None:
    async with browser(url) as stranger, stranger.post("/set_generation_params", temperature=0.5) as response:
        assert response.status == 200


@pytest.mark.parametrize("flood", [import_, set_params])
async def test_writes_without_an_answer_evict_no_other_user(
    start: StartServer, client_of: ClientOf, flood: Callable[[str], Awaitable[None]]
) -> None:
    store = MemoryConversationStore(max_conversations=PLACES)
    server = await start(ChatStream(engine=echo, conversation_store=store), MemoryStorage(max_sessions=PLACES))
    client: Client = client_of(server)
    await client.say("hello")
    for _ in range(TIMES):
        await flood(server.url)
    assert await client.texts() == ["hello", "hello "]


async def test_an_address_with_many_conversations_evicts_its_own() -> None:
    async def remote(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request.clone(remote=request.headers["X-Test-Address"]))

    async def login(request: web.Request) -> web.Response:
        (await get_session(request))["login"] = "Ann"
        return web.Response()

    async def account(request: web.Request) -> web.Response:
        return web.Response(text=(await get_session(request)).get("login", "nobody"))

    app = web.Application(middlewares=[web.middleware(remote)])
    aiohttp_session.setup(app, MemoryStorage(max_sessions=PLACES))
    chat_stream = ChatStream(engine=echo, conversation_store=MemoryConversationStore(max_conversations=PLACES))
    chat_stream.add_endpoints(app)
    app.add_routes([web.post("/login", login), web.get("/account", account)])
    async with serving(app) as url, AsyncExitStack() as stack:
        ann, bob = [await stack.enter_async_context(browser(url)) for _ in range(2)]
        for client, address in ((ann, "192.0.2.1"), (bob, "2001:db8:1::1")):
            client.session.headers["X-Test-Address"] = address
        async with ann.post("/login"):
            pass
        await bob.say("hello")
        for number in range(TIMES):
            async with browser(url) as stranger:
                stranger.session.headers["X-Test-Address"] = f"2001:db8:2::{number:x}"
                await stranger.say("hello")
        assert await bob.texts() == ["hello", "hello "]
        async with ann.session.get(f"{url}/account") as response:
            assert await response.text() == "Ann"
