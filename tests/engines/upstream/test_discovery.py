from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from aiochatstream.engines.upstream import Upstream
from aiochatstream.engines.upstream.discovery import resolve, source_of
from tests.engines.upstream.model_server import ModelServer, open_pool
from tests.helpers import serving, until

pytestmark = pytest.mark.both_loops

REFRESH = 0.02


class Names:
    """A resolver with addresses that the test changes; None fails."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: list[str] | None = [*addresses]
        self.lookups: list[tuple[str, int]] = []

    async def resolve(self, name: str, port: int) -> list[str]:
        self.lookups.append((name, port))
        if self.addresses is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.addresses


class ServerList:
    """A server that publishes a list."""

    def __init__(self) -> None:
        self.body: Any = []
        self.status = 200
        self.requests: list[dict[str, str]] = []

    async def respond(self, request: web.Request) -> web.Response:
        self.requests.append(dict(request.headers))
        return web.json_response(self.body, status=self.status, headers={"Location": "/other"})


@pytest.fixture
async def published() -> AsyncIterator[tuple[ServerList, str]]:
    """Yield a list, and its URL."""
    server_list, app = ServerList(), web.Application()
    app.router.add_get("/upstreams", server_list.respond)
    async with serving(app) as url:
        yield server_list, f"list+{url}/upstreams"


async def test_each_address_of_a_name_is_a_server() -> None:
    names = Names("10.0.0.1", "10.0.0.2", "10.0.0.1", "fd00::1")
    source = source_of(Upstream("dns+http://vllm.svc:8000/a", slots=3, api_key="k"), names.resolve, 2.0)
    assert await source.read() == [
        Upstream("http://10.0.0.1:8000/a", 3, "k"),
        Upstream("http://10.0.0.2:8000/a", 3, "k"),
        Upstream("http://[fd00::1]:8000/a", 3, "k"),
    ]
    assert names.lookups == [("vllm.svc", 8000)]


async def test_a_single_server_is_its_own_source() -> None:
    upstream = Upstream("http://gpu1", name="a")
    assert await source_of(upstream, resolve, 2.0).read() == [upstream]


async def test_the_operating_system_resolves_names() -> None:
    assert "127.0.0.1" in await resolve("localhost", 80)


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_list_of_servers(published: tuple[ServerList, str], wrapped: bool) -> None:
    server_list, url = published
    urls = ["http://GPU1:8000/v1", "https://gpu2", "http://gpu1:8000"]
    server_list.body = {"upstreams": urls, "other": 1} if wrapped else urls
    source = source_of(Upstream(url, slots=3, api_key="secret"), resolve, 2.0)
    assert await source.read() == [Upstream("http://gpu1:8000", 3, "secret"), Upstream("https://gpu2", 3, "secret")]
    assert "Authorization" not in server_list.requests[0], "the key is for the servers"


@pytest.mark.parametrize(
    "body",
    [
        {},
        None,
        "http://gpu1",
        [1],
        [["http://gpu1"]],
        ["unix:/a"],
        ["dns+http://a"],
        ["list+http://a"],
        ["http://"],
        ["http://a:b@c"],
    ],
)
async def test_an_invalid_list_is_an_error(published: tuple[ServerList, str], body: object) -> None:
    server_list, url = published
    server_list.body = body
    with pytest.raises(ValueError, match=r"^(the list|upstreams): must be"):
        await source_of(Upstream(url), resolve, 2.0).read()


async def test_servers_come_and_go_with_the_addresses_of_a_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    names = Names("127.0.0.1")
    async with ModelServer() as server:
        source = f"dns+http://name:{server.port}"
        async with open_pool(source, resolve=names.resolve, refresh=REFRESH) as pool:
            with await pool.acquire("key") as slot:
                names.addresses = None
                await until(lambda: "are unknown: Name or service not known." in caplog.text)
                lookups = len(names.lookups)
                await until(lambda: len(names.lookups) > lookups + 2)
                assert pool.servers == [slot.server], "a failed look-up changes nothing"
                names.addresses = []
                await until(lambda: not pool.servers)
                # its answers continue
                async with slot.server.session.request("GET", "/v1/models") as response:
                    assert response.status == 200
                names.addresses = ["127.0.0.1"]
                await until(lambda: pool.servers)
                assert pool.servers == [slot.server], "the same one is listed again"
                names.addresses = []
                await until(lambda: not pool.servers)
            assert pool.metrics() == []
            await until(lambda: slot.server.session.closed)
            names.addresses = ["127.0.0.1"]
            await until(lambda: pool.servers)
            assert pool.servers != [slot.server]
    assert caplog.text.count("are unknown") == 1


async def test_servers_come_and_go_with_a_list(published: tuple[ServerList, str]) -> None:
    server_list, url = published
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(ModelServer()) for _ in range(2)]
        server_list.body = [a.url]
        pool = await stack.enter_async_context(open_pool(url, b, slots=2, refresh=REFRESH))
        assert {server.url for server in pool.servers} == {a.url, b.url}
        server_list.body = [a.url, b.url]
        requests = len(server_list.requests)
        await until(lambda: len(server_list.requests) > requests + 2)
        assert pool.capacity == 4, "a server that is listed twice is one server"
        server_list.body = {"upstreams": [b.url]}
        await until(lambda: pool.capacity == 2)
        assert pool.servers[0].url == b.url
        server_list.status = 302  # not followed
        requests = len(server_list.requests)
        await until(lambda: len(server_list.requests) > requests + 2)
        assert pool.capacity == 2


async def test_a_server_that_vanishes_while_it_is_down_is_probed_no_more() -> None:
    names = Names("127.0.0.1")
    async with ModelServer(503) as server:
        source = f"dns+http://name:{server.port}"
        async with open_pool(source, resolve=names.resolve, refresh=REFRESH) as pool:
            assert pool.unavailable()
            names.addresses = []
            await until(lambda: not pool.metrics())
            await asyncio.sleep(0)
            assert not pool.servers


async def test_the_servers_of_an_unreachable_list_are_found_later(published: tuple[ServerList, str]) -> None:
    server_list, url = published
    server_list.status = 503
    async with ModelServer() as server, open_pool(url, refresh=REFRESH) as pool:
        assert pool.unavailable()
        server_list.status, server_list.body = 200, [server.url]
        with await pool.acquire("key", wait=20) as slot:
            assert slot.server.url == server.url
