"""Users, servers and engines for the tests."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import aiohttp_session
from aiohttp import web
from aiohttp_session import AbstractStorage

from aiochatstream import ChatStream, GenerationParams, MemoryStorage

PATIENCE = 20.0
"""Seconds until a test gives up on something that should happen at once."""


async def until(condition: Callable[[], Any]) -> None:
    """Wait for ``condition`` to become true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class Server:
    """A running server."""

    chat_stream: ChatStream
    runner: web.AppRunner
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def idle(self) -> bool:
        """All gauges are at zero."""
        admission = self.chat_stream.admission
        return admission.running == admission.waiting == len(self.chat_stream._turns) == 0

    @property
    def stopping(self) -> bool:
        """An answer was told to stop, and its engine is still in a step."""
        return any(turn.ending for turn in self.chat_stream.running_turns)


@asynccontextmanager
async def running_server(
    chat_stream: ChatStream,
    storage: AbstractStorage | None = None,
    *,
    handler_cancellation: bool = False,
    client_max_size: int = 1 << 20,
    port: int = 0,
    api_keys: Sequence[str] | None = None,
) -> AsyncIterator[Server]:
    app = web.Application(client_max_size=client_max_size)
    aiohttp_session.setup(app, MemoryStorage() if storage is None else storage)
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    chat_stream.setup_openai(app, api_keys=api_keys)
    runner = web.AppRunner(app, handler_cancellation=handler_cancellation, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        await chat_stream.wait_ready()
        yield Server(chat_stream, runner, f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """The URL of ``app``, which runs in this block."""
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def browser(url: str) -> AsyncIterator[Client]:
    """One more user of the app at ``url``."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield Client(session, url)


@dataclass
class Client:
    """One user with a cookie jar."""

    session: aiohttp.ClientSession
    url: str

    def post(self, path: str = "/chat_stream", accept: str = "*/*", **body: Any) -> Any:
        return self.session.post(self.url + path, json=body, headers={"Accept": accept})

    async def say(self, text: str | None = None, **body: Any) -> dict[str, Any]:
        """One turn, as the JSON format tells of it. Fails the test unless the status is 200."""
        async with self.post(accept="application/json", user_input=text, **body) as response:
            data: dict[str, Any] = await response.json()
            assert response.status == 200, data
            return data

    async def history(self, conversation: str = "main") -> list[dict[str, Any]]:
        async with self.session.get(f"{self.url}/history", params={"conversation": conversation}) as response:
            assert response.status == 200, await response.text()
            messages: list[dict[str, Any]] = (await response.json())["messages"]
            return messages

    async def texts(self, conversation: str = "main") -> list[str]:
        return [message["content"] for message in await self.history(conversation)]


async def sse_events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The events of a stream, as they arrive."""
    name = ""
    async for line in response.content:
        field_name, _, value = line.decode().rstrip("\n").partition(": ")
        if field_name == "event":
            name = value
        elif field_name == "data":
            yield name, json.loads(value)


@dataclass
class Stepper:
    """A generator function for ``ChatStream(engine=...)`` that makes a step only when the test allows one.

    It answers with "1 2 3 ..." and never ends by itself; ``fail_at`` raises at that step. Counts what happens.
    """

    fail_at: int | None = None
    calls: list[list[dict[str, str]]] = field(default_factory=list)
    closed: int = 0
    running: int = 0
    most_running: int = 0
    _permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __call__(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        self.calls.append(messages)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            step = 0
            while True:
                self._permits.acquire()
                if step == self.fail_at:
                    raise ZeroDivisionError("the engine broke")
                step += 1
                yield f"{step} "
        finally:
            self.running -= 1
            self.closed += 1

    def allow(self, steps: int = 1) -> None:
        self._permits.release(steps)


def post_bytes(body: str, *, path: str = "/chat_stream", version: str = "1.1", headers: str = "") -> bytes:
    """A POST of JSON as it is on the wire."""
    length = len(body.encode())
    head = (
        f"POST {path} HTTP/{version}\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    )
    return f"{head}{headers}\r\n{body}".encode()


def echo(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
    """An engine that answers at once with the newest message, word by word."""
    for word in messages[-1]["content"].split(" "):
        yield word + " "


def role_of(auth_method: Any = None, secret: Any = None, **fields: Any) -> dict[str, Any]:
    """A role of ``client_roles``, which allows all unless ``fields`` say otherwise."""
    given = {"allow": "all", **fields}
    if auth_method is not None:
        given["auth_method"] = auth_method
    if secret is not None:
        given[auth_method] = secret
    return {"apis": given}
