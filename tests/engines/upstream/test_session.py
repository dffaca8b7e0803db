from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from aiochatstream.engines.upstream import Upstream
from aiochatstream.engines.upstream.session import MAX_OPENING, UpstreamSession
from tests.helpers import serving, until
from tests.nginx_server import make_certificate

pytestmark = pytest.mark.both_loops


async def headers(request: web.Request) -> web.Response:
    response = web.json_response(dict(request.headers))
    response.set_cookie("name", "value")
    return response


async def redirect(request: web.Request) -> web.Response:
    raise web.HTTPFound("/headers")


def application() -> web.Application:
    app = web.Application()
    app.add_routes([web.get("/prefix/headers", headers), web.get("/headers", headers), web.get("/redirect", redirect)])
    return app


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"[" * 100_000, "nested deeply|Expecting value"), (b" " * ((1 << 20) + 1), "at most 1048576 bytes")],
)
async def test_json_is_limited(body: bytes, message: str) -> None:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(body=body)

    app = web.Application()
    app.router.add_get("/", respond)
    async with serving(app) as url:
        session = UpstreamSession(Upstream(url), connect=2)
        async with session.request("GET", "/") as response:
            with pytest.raises(ValueError, match=message):
                await session.read_json(response)
        await session.close()


async def test_the_key_is_sent_and_neither_cookies_nor_proxies_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with serving(application()) as url:
        session = UpstreamSession(Upstream(f"{url}/prefix", api_key="secret"), connect=2)
        for _ in range(2):
            async with session.request("GET", "/headers") as response:
                sent = await response.json()
                assert sent["Authorization"] == "Bearer secret"
                assert "Cookie" not in sent
        await session.close()


async def test_redirects_are_not_followed() -> None:
    async with serving(application()) as url:
        session = UpstreamSession(Upstream(url, api_key="secret"), connect=2)
        async with session.request("GET", "/redirect") as response:
            assert response.status == 302
        await session.close()


async def test_a_unix_socket(tmp_path: Path) -> None:
    runner = web.AppRunner(application())
    await runner.setup()
    await web.UnixSite(runner, tmp_path / "a.sock").start()
    session = UpstreamSession(Upstream(f"unix:{tmp_path}/a.sock"), connect=2)
    async with session.request("GET", "/headers") as response:
        assert (await response.json())["Host"] == "localhost"
    await session.close()
    await runner.cleanup()


async def test_few_connections_are_opened_at_a_time() -> None:
    """A server that accepts connections and never begins TLS leaves each of them half open."""
    accepted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda reader, writer: accepted.append(writer), "127.0.0.1", 0)
    session = UpstreamSession(Upstream(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"), connect=60)
    requests = [asyncio.create_task(send(session)) for _ in range(MAX_OPENING + 20)]
    await until(lambda: len(accepted) == MAX_OPENING)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(accepted) == MAX_OPENING
    for writer in [*accepted]:
        writer.close()
    await until(lambda: len(accepted) == MAX_OPENING + 20)
    for writer in accepted:
        writer.close()
    errors = await asyncio.gather(*requests, return_exceptions=True)
    assert all(isinstance(error, aiohttp.ClientError) for error in errors)
    await session.close()
    server.close()


async def test_a_connection_that_does_not_open_in_time_is_an_error() -> None:
    accepted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda reader, writer: accepted.append(writer), "127.0.0.1", 0)
    session = UpstreamSession(Upstream(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"), connect=0.05)
    with pytest.raises(TimeoutError):
        await send(session)
    await session.close()
    for writer in accepted:
        writer.close()
    server.close()


async def test_certificates_are_verified(tmp_path: Path) -> None:
    requests: list[bytes] = []

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.read())
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path))
    server = await asyncio.start_server(read, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    session = UpstreamSession(Upstream(url, api_key="secret"), connect=10)
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await send(session)
    await session.close()
    server.close()
    assert not any(requests)


async def send(session: UpstreamSession) -> None:
    async with session.request("GET", "/headers"):
        pass
