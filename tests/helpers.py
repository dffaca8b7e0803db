"""Clients, servers and engines for the tests, and the types of the fixtures in conftest.py."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import aiohttp_session
from aiohttp import web
from aiohttp_session import AbstractStorage

from aiochatstream import ChatStream, Delta, Engine, GenerationParams, MemoryStorage, Prompt

PATIENCE = 20.0
"""Seconds to wait for something that should happen immediately."""


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` returns a true value."""
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
        """True if no turn runs or waits, and all slots are free."""
        admission = self.chat_stream.admission
        return admission.running == admission.waiting == len(self.chat_stream.running_turns) == 0

    @property
    def stopping(self) -> bool:
        """True if a turn must end whose engine is still in a step."""
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
    """Serve ``app`` during the block, and yield its URL."""
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def browser(url: str) -> AsyncIterator[Client]:
    """Yield a new user of the app at ``url``."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield Client(session, url)


class PendingResponse(Awaitable[aiohttp.ClientResponse], AbstractAsyncContextManager[aiohttp.ClientResponse], Protocol):
    """A request that ``await`` or ``async with`` sends."""


@dataclass
class Client:
    """A user of a server, with cookies."""

    session: aiohttp.ClientSession
    url: str

    def post(self, path: str = "/chat_stream", accept: str = "*/*", **body: Any) -> PendingResponse:
        return self.session.post(self.url + path, json=body, headers={"Accept": accept})

    async def say(self, text: str | None = None, **body: Any) -> dict[str, Any]:
        """Send a message and return the JSON of its answer. Fails the test unless the status is 200."""
        async with self.post(accept="application/json", user_input=text, **body) as response:
            data: dict[str, Any] = await response.json()
            assert response.status == 200, data
            return data

    async def rate(self, **body: Any) -> tuple[int, dict[str, Any]]:
        """Send feedback, and return the status and the JSON of the response."""
        async with self.post("/set_feedback", **body) as response:
            return response.status, await response.json()

    async def history(self, conversation: str = "main") -> list[dict[str, Any]]:
        async with self.session.get(f"{self.url}/history", params={"conversation": conversation}) as response:
            assert response.status == 200, await response.text()
            messages: list[dict[str, Any]] = (await response.json())["messages"]
            return messages

    async def texts(self, conversation: str = "main") -> list[str]:
        return [message["content"] for message in await self.history(conversation)]


async def sse_events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the data of each event, as it arrives."""
    name = ""
    async for line in response.content:
        field_name, _, value = line.decode().rstrip("\n").partition(": ")
        if field_name == "event":
            name = value
        elif field_name == "data":
            yield name, json.loads(value)


@dataclass
class Stepper:
    """A generator function for ``ChatStream(engine=...)`` that makes a step only when the test allows it.

    It yields "1 2 3 ..." without end, and raises an error at the step ``fail_at``.

    closed: number of generators that have ended. running, most_running: current and maximum number of generators.
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


class DeltaEngine(Engine):
    """An engine that yields ``deltas`` as every answer, with parameters of any kind.

    An Event among them delays the rest until the test sets it.

    prompts: the prompts, oldest first.
    """

    def __init__(self, *deltas: Delta | threading.Event, response_template: dict[str, Any] | None = None) -> None:
        self.deltas, self.response_template = deltas, response_template
        self.prompts: list[Prompt] = []

    def check(self, params: GenerationParams) -> None:
        pass

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        self.prompts.append(prompt)
        for delta in self.deltas:
            if isinstance(delta, Delta):
                yield delta
            elif not delta.wait(PATIENCE):
                raise TimeoutError("The test did not set the event.")


THOUGHTFUL = (
    Delta(thinking="Let me ", token_ids=(1, 2), thinking_tokens=2),
    Delta(thinking="see.", token_ids=(3, 4), thinking_tokens=2),
    Delta("It is ", (5, 6)),
    Delta("four.", (7,), "stop"),
)
"""Deltas of an answer with a thought."""

STUCK_THOUGHT = (Delta(thinking="Let me ", token_ids=(1,), thinking_tokens=1), Delta(finish_reason="thinking_length"))
"""Deltas of an answer whose tokens end inside the thought."""


def post_bytes(body: str, *, path: str = "/chat_stream", version: str = "1.1", headers: str = "") -> bytes:
    """Return a POST request of JSON as raw bytes."""
    length = len(body.encode())
    head = (
        f"POST {path} HTTP/{version}\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    )
    return f"{head}{headers}\r\n{body}".encode()


def echo(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
    """Yield the newest message, word by word."""
    for word in messages[-1]["content"].split(" "):
        yield word + " "


def role_of(auth_method: Any = None, secret: Any = None, **fields: Any) -> dict[str, Any]:
    """Return a role of ``client_roles`` that allows all endpoints, unless ``fields`` specify others."""
    role = {"allow": "all", **fields}
    if auth_method is not None:
        role["auth_method"] = auth_method
    if secret is not None:
        role[auth_method] = secret
    return {"apis": role}


class StartServer(Protocol):
    """Starts a server, which is stopped after the test."""

    async def __call__(
        self,
        chat_stream: ChatStream,
        storage: AbstractStorage | None = None,
        *,
        handler_cancellation: bool = False,
        client_max_size: int = 1 << 20,
        port: int = 0,
        api_keys: Sequence[str] | None = None,
    ) -> Server: ...


class MakeStepper(Protocol):
    """Returns a :class:`Stepper`, which may finish after the test."""

    def __call__(self, *, fail_at: int | None = None) -> Stepper: ...


EngineFunction = Callable[[list[dict[str, str]], GenerationParams], Iterator[str]]
"""Generator function that serves as an engine."""

ClientOf = Callable[[Server], Client]
"""Function that returns a new user of a server."""
