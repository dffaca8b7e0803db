"""Tests of allowed host names: DNS rebinding gives pages no access to the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp_session
import pytest
from aiohttp import web

from aiochatstream import ChatStream, MemoryStorage
from aiochatstream.cli.listening import allowed_hosts, listen
from aiochatstream.texts import EN
from aiochatstream.web.auth.roles import PROBES
from aiochatstream.web.openai.routes import ENDPOINTS as OPENAI_ENDPOINTS
from aiochatstream.web.routes import ENDPOINTS
from tests.helpers import ClientOf, StartServer, echo

REBOUND = {"Host": "evil.example:8080", "Origin": "http://evil.example:8080", "Sec-Fetch-Site": "same-origin"}
"""Headers of a page that was loaded from this server by a host name of the attacker."""

ROUTES = [
    *(
        (name, endpoint.route("/", echo).method, endpoint.path.format(message_id="x"))
        for name, endpoint in ENDPOINTS.items()
    ),
    ("webui_index", "GET", "/ui_config"),
    *(
        (name, endpoint.route("/", echo).method, "/v1" + endpoint.path.partition("{")[0])
        for name, endpoint in OPENAI_ENDPOINTS.items()
        if name != "retrieve_model"
    ),
    ("retrieve_model", "GET", "/v1/models/x"),
]

ANYWHERE = "203.0.113.1"


@asynccontextmanager
async def listening(kind: str, folder: Path, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a client of a server on a Unix socket, or on a socket that ``serve --host`` opens."""
    chat_stream = ChatStream(engine=echo, **options)
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage(secure=True))
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    chat_stream.setup_openai(app)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    connector: aiohttp.BaseConnector
    try:
        if kind == "unix":
            await web.UnixSite(runner, str(folder / "socket")).start()
            connector, url = aiohttp.UnixConnector(str(folder / "socket")), "http://server"
        else:
            listener = listen(kind, 0, EN)
            await web.SockSite(runner, listener).start()
            host = "[::1]" if kind == "::1" else "127.0.0.1"
            connector, url = aiohttp.TCPConnector(), f"http://{host}:{listener.getsockname()[1]}"
        async with aiohttp.ClientSession(url, connector=connector) as client:
            yield client
    finally:
        await runner.cleanup()


async def status(client: aiohttp.ClientSession, host: str | None, path: str = "/get_load") -> int:
    headers, skip = ({}, ["Host"]) if host is None else ({"Host": host}, [])
    async with client.get(path, headers=headers, skip_auto_headers=skip) as response:
        return response.status


@pytest.mark.parametrize(("name", "method", "path"), ROUTES, ids=[f"{route[1]} {route[2]}" for route in ROUTES])
async def test_dns_rebinding_pages_reach_only_the_probes(
    start: StartServer, client_of: ClientOf, name: str, method: str, path: str
) -> None:
    client = client_of(await start(ChatStream(engine=echo, client_roles=None)))
    async with client.session.request(method, client.url + path, json={"user_input": "hi"}, headers=REBOUND) as answer:
        if name in PROBES:
            assert answer.status == 200
            return
        assert answer.status == 403
        assert "Set-Cookie" not in answer.headers
        text = await answer.text()
        assert "forbidden" in text
        assert "allowed_hosts=['evil.example']" in text
        assert "--allowed-host evil.example" in text


@pytest.mark.parametrize("kind", ["127.0.0.1", "::1", "0.0.0.0", "::"])  # noqa: S104
async def test_by_default_connections_to_a_loopback_address_allow_loopback_names_only(
    kind: str, tmp_path: Path
) -> None:
    async with listening(kind, tmp_path) as client:
        for host in ("localhost", "LOCALHOST.:80", "chat.localhost:1", "127.0.0.1", "127.1.2.3:80", "[::1]:80"):
            assert await status(client, host) == 200, host
        assert await status(client, None) == 200  # not a browser
        assert await status(client, ANYWHERE) == 200  # an address is not resolved
        for host in (
            "evil.example",
            "localhost.evil.example",
            "evil-localhost",
            "127.0.0.1.evil.example",
            "evil.example:localhost",
            "[::1",
            "x y",
            "\u00e9",
            ":80",
            "127.1",
        ):
            assert await status(client, host) == (200 if host == "[::1" else 403), host


@pytest.mark.parametrize("names", [None, ["chat.example.com"]])
async def test_the_machines_own_names_and_container_names_are_allowed(
    names: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Box.office.example")
    async with listening("0.0.0.0", tmp_path, allowed_hosts=names) as client:  # noqa: S104
        for host in ("box:8080", "BOX.local", "host.docker.internal:8080", "host.containers.internal"):
            assert await status(client, host) == 200, host
        for host in ("box.office.example", "x.box", "box.evil.example", "docker.internal", "x.host.docker.internal"):
            assert await status(client, host) == 403, host


@pytest.mark.parametrize("name", ["", "vm"])
async def test_a_machine_without_a_name_allows_no_further_host(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: name)
    async with listening("127.0.0.1", tmp_path) as client:
        for host in (".local", "evil.local", ":80"):
            assert await status(client, host) == 403, host


async def test_any_host_is_allowed_over_a_unix_socket_by_default(tmp_path: Path) -> None:
    async with listening("unix", tmp_path) as client:
        assert await status(client, "chat.example.com") == 200
    async with listening("unix", tmp_path, allowed_hosts=["chat.example.com"]) as client:
        assert await status(client, "chat.example.com") == 200
        assert await status(client, "evil.example") == 403


@pytest.mark.parametrize("kind", ["127.0.0.1", "unix"])
async def test_allowed_hosts_accepts_names_and_wildcards(kind: str, tmp_path: Path) -> None:
    names = ["Chat.Example.com.", "*.wild.example", "münchen.example", "my_chat"]
    async with listening(kind, tmp_path, allowed_hosts=names) as client:
        for host in (
            "chat.example.com",
            "CHAT.example.com:8443",
            "chat.example.com.",
            "a.wild.example",
            "a.b.wild.example:1",
            "xn--mnchen-3ya.example",
            "my_chat:8080",
            "localhost",
            ANYWHERE,
            "[2001:db8::1]:80",
        ):
            assert await status(client, host) == 200, host
        for host in ("wild.example", "evilwild.example", "x.chat.example.com", "example.com", "chat.example.com.evil"):
            assert await status(client, host) == 403, host
    async with listening(kind, tmp_path, allowed_hosts=["*"]) as client:
        assert await status(client, "anything.example") == 200
    async with listening(kind, tmp_path, allowed_hosts=[]) as client:
        assert await status(client, "anything.example") == 403


async def test_probes_pass_with_any_host(tmp_path: Path) -> None:
    async with listening("127.0.0.1", tmp_path, allowed_hosts=["chat.example.com"]) as client:
        for host in ("10.1.2.3:8080", "pod-1.cluster.local", None):
            assert await status(client, host, "/healthz") == 200
            assert await status(client, host, "/readyz") == 200


async def test_the_host_of_an_absolute_url_and_every_host_header_are_checked(start: StartServer) -> None:
    server = await start(ChatStream(engine=echo))

    async def first_line(target: str, *hosts: str, version: str = "1.1") -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        headers = "".join(f"Host: {host}\r\n" for host in hosts)
        writer.write(f"GET {target} HTTP/{version}\r\n{headers}Connection: close\r\n\r\n".encode())
        line = await reader.readline()
        writer.close()
        return line.split()[1]

    assert await first_line("/get_load", "localhost") == b"200"
    assert await first_line("http://localhost/get_load", "localhost") == b"200"
    assert await first_line("http://[::1]:80/get_load", "localhost") == b"200"
    assert await first_line("http://evil.example/get_load", "localhost") == b"403"
    assert await first_line("http://localhost/get_load", "evil.example") == b"403"
    assert await first_line("/get_load", "localhost", "evil.example") in (b"400", b"403")
    assert await first_line("/get_load", version="1.0") == b"200"


@pytest.mark.parametrize(
    "names",
    [
        "chat.example.com",
        5,
        *(
            [name]
            for name in ("http://a", "a:80", "", ".a", "*.", "*a", "a..b", "a b", "a/b", "u@h", "*.*", "[x]", "\x1b", 5)
        ),
    ],
)
def test_an_invalid_host_name_is_a_value_error(names: Any) -> None:
    with pytest.raises(ValueError, match=r"allowed_hosts: must be "):
        ChatStream(engine=echo, allowed_hosts=names)


@pytest.mark.parametrize(
    ("host", "names", "allowed"),
    [
        ("127.0.0.1", None, None),
        ("::", None, None),
        ("", None, None),
        ("localhost", None, None),
        ("box.local", None, ["box.local"]),
        ("box.local", ["chat.example.com"], ["chat.example.com", "box.local"]),
        ("0.0.0.0", ["chat.example.com"], ["chat.example.com"]),  # noqa: S104
    ],
)
def test_the_host_that_serve_listens_on_is_allowed(
    host: str, names: list[str] | None, allowed: list[str] | None
) -> None:
    assert allowed_hosts(host, names) == allowed
