"""Tests of client addresses, in all forms that sockets and headers use."""

from __future__ import annotations

import socket

import aiohttp
import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from aiochatstream import ChatStream, MemoryStorage
from aiochatstream.sessions.client_address import client_network
from aiochatstream.web.auth.addresses import is_local_request
from tests.helpers import echo, role_of


def request_of(remote: str, **headers: str) -> web.Request:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return make_mocked_request("GET", "/metrics", headers=fields).clone(remote=remote)


@pytest.mark.parametrize(
    ("remote", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:0201", "192.0.2.1"),
        ("::ffff:192.0.2.2", "192.0.2.2"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", "unknown"),
        ("@socket", "@socket"),
    ],
)
def test_client_network_is_an_ipv4_address_or_an_ipv6_network(remote: str, key: str) -> None:
    assert client_network(request_of(remote)) == key


@pytest.mark.parametrize(
    ("remote", "headers", "here"),
    [
        ("127.0.0.1", {}, True),
        ("127.9.9.9", {"Host": "localhost:8080"}, True),
        ("::1", {"Host": "[::1]:8080"}, True),
        ("::ffff:127.0.0.1", {"Host": "127.0.0.1:8080"}, True),
        ("::ffff:7f00:1", {}, True),
        ("::ffff:192.0.2.1", {}, False),
        ("192.0.2.1", {"Host": "localhost"}, False),
        ("64:ff9b::7f00:1", {}, False),
        ("", {}, False),
        ("127.0.0.1", {"Host": "chat.example.com"}, False),  # a proxy that forwards the Host header
        ("127.0.0.1", {"Host": "192.0.2.1"}, False),
        *(
            ("127.0.0.1", {"Host": "localhost", header: "127.0.0.1"}, False)
            for header in ("Forwarded", "Via", "X_Real_IP", "X_Forwarded_For", "X_Forwarded_Host", "X_Forwarded_Proto")
        ),
    ],
)
def test_is_local_request_rejects_other_machines_and_local_proxies(
    remote: str, headers: dict[str, str], here: bool
) -> None:
    assert is_local_request(request_of(remote, **headers)) == here


async def test_a_dual_stack_socket_distinguishes_ipv4_clients() -> None:
    # metrics are readable from this machine, and each address has its own phrase attempts
    roles = {"user": role_of("nothing"), "agent": role_of("header_phrase", "sesame", use_session=False)}
    chat_stream = ChatStream(engine=echo, client_roles=roles)
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 ({error.strerror})")
    try:
        await web.SockSite(runner, listener).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        async def status_with(phrase: str, address: str) -> int:
            connector = aiohttp.TCPConnector(local_addr=(address, 0))
            headers = {"X-FastSession-Skip": "skip", "X-ChatStream-Auth-Header": phrase}
            async with (
                aiohttp.ClientSession(connector=connector) as client,
                client.get(f"{url}/get_load", headers=headers) as response,
            ):
                return response.status

        async with aiohttp.ClientSession() as client, client.get(f"{url}/metrics") as response:
            assert response.status == 200
        while await status_with("wrong", "127.0.0.1") == 401:
            pass
        assert await status_with("sesame", "127.0.0.1") == 429
        assert await status_with("sesame", "127.0.0.2") == 200
    finally:
        await runner.cleanup()
