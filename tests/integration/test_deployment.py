"""Tests of the configurations in docs/deployment.md, with nginx and by the public host name."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import secrets
import shlex
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp_session import AbstractStorage
from cryptography.fernet import Fernet
from platformdirs import user_cache_path

from aiochatstream import ChatStream, CookieStorage, MemoryStorage
from tests.helpers import PATIENCE, Client, MakeStepper, Server, StartServer, echo, role_of, serving, sse_events, until
from tests.nginx_server import NAME, Nginx, replace, running_nginx
from tests.processes import PYTHON, ROOT, Reply, ask, ask_when_listening, free_port, running

DOCS = ROOT / "docs" / "deployment.md"

KINDS = ["HTTP", "HTTPS"]


class ToLoopback(AbstractResolver):
    """A resolver that resolves every name to this machine."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def nginx_client(nginx: Nginx, address: str = "127.0.0.1") -> AsyncIterator[Client]:
    """Yield a user with cookies, who reaches ``nginx`` by its name over HTTP or HTTPS."""
    trust: bool | ssl.SSLContext = (
        True if nginx.certificate is None else ssl.create_default_context(cafile=str(nginx.certificate))
    )
    connector = aiohttp.TCPConnector(resolver=ToLoopback(), ssl=trust, local_addr=(address, 0))
    page = {"Origin": nginx.url}  # browsers send Sec-Fetch-Site only over HTTPS, and not all of them
    async with aiohttp.ClientSession(
        connector=connector, headers=page, timeout=aiohttp.ClientTimeout(PATIENCE)
    ) as session:
        yield Client(session, nginx.url)


StartBehindNginx = Callable[..., Awaitable[tuple[Nginx, Server]]]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
async def behind(kind: str, start: StartServer, tmp_path: Path) -> AsyncIterator[StartBehindNginx]:
    """Yield a function that starts a server and an nginx in front of it."""
    async with AsyncExitStack() as stack:

        async def start_both(
            *, storage: AbstractStorage | None = None, api_keys: list[str] | None = None, **options: Any
        ) -> tuple[Nginx, Server]:
            chat_stream = ChatStream(**{"engine": echo, "allowed_hosts": [NAME], **options})
            server = await start(chat_stream, storage or MemoryStorage(secure=kind == "HTTPS"), api_keys=api_keys)
            return stack.enter_context(running_nginx(kind, tmp_path / "nginx", server.url)), server

        yield start_both


async def test_the_page_and_its_files_are_served(behind: StartBehindNginx) -> None:
    nginx, _ = await behind()
    async with nginx_client(nginx) as client, client.session.get(f"{client.url}/") as response:
        page = await response.text()
        assert response.status == 200
        files = re.findall(r'(?:src|href)="(page/[^"]+)"', page)
        assert files
        for file in files:
            async with client.session.get(f"{client.url}/{file}") as response:
                assert response.status == 200, file
        async with client.session.get(f"{client.url}/ui_config") as response:
            assert response.status == 200
        async with client.session.get(f"{client.url}/docs") as response:
            assert f"curl {client.url}/chat_stream" in await response.text()


@pytest.mark.parametrize("accept", ["text/event-stream", "text/plain"])
async def test_each_piece_of_a_stream_arrives_before_the_next_is_generated(
    behind: StartBehindNginx, stepper: MakeStepper, accept: str
) -> None:
    engine = stepper()
    nginx, _ = await behind(engine=engine)
    async with nginx_client(nginx) as client:
        engine.allow(1)
        async with client.post(accept=accept, user_input="Count") as response:
            assert response.status == 200
            seen = ""
            for step in range(1, 5):
                while f"{step} " not in seen:
                    seen += (await response.content.readany()).decode()
                engine.allow(1)


async def test_a_disconnect_through_nginx_frees_the_slot(behind: StartBehindNginx, stepper: MakeStepper) -> None:
    engine = stepper()
    nginx, server = await behind(engine=engine)
    engine.allow(1)
    async with nginx_client(nginx) as client, client.post(accept="text/plain", user_input="Count") as response:
        await response.content.readany()
        assert response.connection is not None
        assert response.connection.transport is not None
        response.connection.transport.abort()  # like a browser, without waiting for the TLS shutdown
        await until(lambda: server.stopping)
    engine.allow(1)
    await until(lambda: server.idle)


@pytest.mark.parametrize("max_bytes", [6144, 7900])
async def test_a_conversation_continues_in_cookies_of_the_maximum_size(
    behind: StartBehindNginx, kind: str, max_bytes: int
) -> None:
    key = Fernet.generate_key()
    nginx, _ = await behind(storage=CookieStorage(key, secure=kind == "HTTPS", max_bytes=max_bytes))
    async with nginx_client(nginx) as client:
        messages: list[str] = []
        while True:
            messages.append(secrets.token_hex(300))
            if (await client.say(messages[-1])).get("dropped_turns"):
                break
        cookies = list(client.session.cookie_jar)
        assert sum(len(cookie.OutputString()) for cookie in cookies) > max_bytes - 1000
        assert len(cookies) == 2
        secure = kind == "HTTPS"
        assert all(bool(item["secure"]) == item.key.startswith("__Host-") == secure for item in cookies)
        texts = await client.texts()
        assert texts[-2:] == [messages[-1], f"{messages[-1]} "]
        assert texts[0] != messages[0]
        async with client.post(accept="text/event-stream", user_input="streamed") as response:
            token = await anext(data["commit"] async for name, data in sse_events(response) if name == "done")
        async with client.post("/commit", commit=token) as response:
            assert response.status == 200
        assert (await client.texts())[-1] == "streamed "


async def test_nginx_passes_bodies_up_to_the_servers_limit_and_the_servers_error_above_it(
    behind: StartBehindNginx,
) -> None:
    nginx, server = await behind()
    most = server.chat_stream.limits.max_request_bytes

    async def send(client: Client, path: str, body: bytes) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        async with client.session.post(client.url + path, data=io.BytesIO(body), headers=headers) as response:
            return response.status, (await response.json()).get("error", "")

    async with nginx_client(nginx) as client:
        for size, refused in (
            (most, (400, "bad_request")),
            (most + 1, (413, "too_large")),
            (8 * most, (413, "too_large")),
        ):
            body = b'{"commit": "%s"}' % (b"x" * (size - 14))
            assert len(body) == size
            assert await send(client, "/commit", body) == refused
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "話" * 1_000_000}]
        assert await send(client, "/import", json.dumps({"messages": messages}).encode()) == (200, "")


async def test_metrics_are_forbidden_through_nginx_with_any_headers(behind: StartBehindNginx) -> None:
    nginx, server = await behind()
    async with nginx_client(nginx) as client:
        for headers in ({}, {"Host": "localhost"}, {"X-Forwarded-For": ""}, {"X-Forwarded-For": "127.0.0.1"}):
            async with client.session.get(f"{client.url}/metrics", headers=headers) as response:
                assert response.status == 403, headers
                assert (await response.json())["error"] == "forbidden"
        async with client.session.get(f"{server.url}/metrics") as response:
            assert response.status == 200


async def test_allow_metrics_can_allow_clients_behind_nginx(behind: StartBehindNginx) -> None:
    nginx, _ = await behind(allow_metrics=lambda request: request.headers.get("Authorization") == "Bearer secret")
    async with nginx_client(nginx) as client:
        headers = {"Authorization": "Bearer secret"}
        async with client.session.get(f"{client.url}/metrics", headers=headers) as response:
            assert response.status == 200
            assert "aiochatstream_num_requests_running" in await response.text()


async def test_the_openai_api_streams_through_nginx(behind: StartBehindNginx) -> None:
    key = secrets.token_hex(16)
    nginx, _ = await behind(api_keys=[key])
    body = {"model": "", "messages": [{"role": "user", "content": "one two"}], "stream": True}
    async with nginx_client(nginx) as client:
        url = f"{client.url}/v1/chat/completions"
        async with client.session.post(url, json=body) as response:
            assert response.status == 401
        async with client.session.post(url, json=body, headers={"Authorization": f"Bearer {key}"}) as response:
            assert response.status == 200
            assert "data: [DONE]" in await response.text()


async def test_pages_of_another_site_port_or_name_are_rejected(behind: StartBehindNginx) -> None:
    nginx, _ = await behind()
    scheme = nginx.url.partition(":")[0]
    async with nginx_client(nginx) as client:
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": f"{scheme}://{NAME}:1"},
            {"Origin": "null"},
            {"Host": "evil.example", "Origin": f"{scheme}://evil.example"},
        ):
            async with client.session.post(
                f"{client.url}/chat_stream", json={"user_input": "hi"}, headers=headers
            ) as response:
                assert response.status == 403, headers


@pytest.mark.parametrize("kind", ["HTTPS"], indirect=True)
async def test_plain_http_redirects_to_https_and_floods_are_rate_limited(behind: StartBehindNginx) -> None:
    nginx, _ = await behind(num_of_concurrent_executions=100)
    async with nginx_client(nginx) as client:
        async with client.session.get(f"http://{NAME}:{nginx.http_port}/x?y", allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (301, f"https://{NAME}/x?y")

        async def status() -> int:
            async with client.post(user_input="hi", conversation=secrets.token_hex(4)) as response:
                return response.status

        statuses = await asyncio.gather(*(status() for _ in range(60)))
        assert set(statuses) == {200, 429}


async def test_the_documented_middleware_counts_clients_by_their_own_addresses(kind: str, tmp_path: Path) -> None:
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "clone" in block]
    names: dict[str, Any] = {"web": web}
    exec(block, names)  # noqa: S102
    app: web.Application = names["app"]
    roles = {"user": role_of("nothing"), "agent": role_of("header_phrase", "sesame", use_session=False)}
    chat_stream = ChatStream(engine=echo, allowed_hosts=[NAME], client_roles=roles)
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app)

    async def status_with(nginx: Nginx, phrase: str, address: str, forged: str = "") -> int:
        headers = {"X-FastSession-Skip": "skip", "X-ChatStream-Auth-Header": phrase}
        if forged:
            headers["X-Forwarded-For"] = forged
        async with (
            nginx_client(nginx, address) as client,
            client.session.get(f"{client.url}/get_load", headers=headers) as response,
        ):
            return response.status

    async with serving(app) as url:
        with running_nginx(kind, tmp_path / "nginx", url) as nginx:
            tries = 0
            while await status_with(nginx, "wrong", "127.0.0.1", forged=f"192.0.2.{tries}") == 401:
                tries += 1
                assert tries < 40
            assert await status_with(nginx, "sesame", "127.0.0.1") == 429
            assert await status_with(nginx, "sesame", "127.0.0.2") == 200
            async with nginx_client(nginx) as client:
                assert (await client.say("hi"))["text"] == "hi "


async def test_the_documented_command_serves_through_nginx(kind: str, tmp_path: Path) -> None:
    section = DOCS.read_text().partition(f"## nginx, {kind}\n")[2]
    documented = re.search(r"```sh\n(aiochatstream serve .*)\n```", section)
    assert documented
    (tmp_path / "key").write_bytes(Fernet.generate_key())
    (tmp_path / "key").chmod(0o600)
    port = free_port()
    options = [*shlex.split(documented[1])[1:], "--mock", "echo", "--port", str(port)]
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [PYTHON, "-m", "aiochatstream", *options]
    with running(command, tmp_path / "serve", cwd=tmp_path, env=env, forked=True) as process:
        ask_when_listening(process, f"http://127.0.0.1:{port}/readyz")
        process.wait_for(lambda: "Ready on" in process.out, "readiness")
        with running_nginx(kind, tmp_path / "nginx", f"http://127.0.0.1:{port}") as nginx:
            async with nginx_client(nginx) as client:
                assert (await client.say("one"))["text"] == "one"
                assert await client.texts() == ["one", "one"]
        assert process.end() == 0


def test_the_documented_gunicorn_listens_on_a_unix_socket(tmp_path: Path) -> None:
    command = re.search(r"```sh\n(gunicorn .*)\n```", DOCS.read_text())
    assert command
    options = shlex.split(replace(command[1], "/run/chat.sock", f"{tmp_path}/chat.sock"))
    env = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "XDG_CACHE_HOME": str(user_cache_path())}
    with (
        running([PYTHON, "-m", *options], tmp_path / "gunicorn", env=env, forked=True) as process,
        running_nginx("HTTP", tmp_path / "nginx", f"http://unix:{tmp_path}/chat.sock") as nginx,
    ):

        def answer() -> Reply | None:
            reply = ask(f"http://127.0.0.1:{nginx.http_port}/chat_stream", {"user_input": ""})
            return None if reply.status in (502, 503) else reply

        assert process.wait_for(answer, "answer through nginx").json["detail"].startswith("user_input: ")


async def test_a_unix_socket_needs_no_allowed_hosts(tmp_path: Path) -> None:
    chat_stream = ChatStream(engine=echo)
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(tmp_path / "chat.sock")).start()
        with running_nginx("HTTP", tmp_path / "nginx", f"http://unix:{tmp_path}/chat.sock") as nginx:
            async with nginx_client(nginx) as client:
                assert (await client.say("hi"))["text"] == "hi "
                async with client.session.get(f"{client.url}/metrics") as response:
                    assert response.status == 403
    finally:
        await runner.cleanup()
