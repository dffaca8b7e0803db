"""Tests of the callback of a request: called once, with the outcome of its request."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import aiohttp_session
import pytest
from aiohttp import web

from aiochatstream import ChatStream, Conversation, Limits, MemoryStorage
from tests.helpers import Client, ClientOf, MakeStepper, PendingResponse, Server, echo, until

pytestmark = pytest.mark.both_loops

BEFORE = "client_disconnected_before_streaming"
WHILE = "client_disconnected_while_streaming"

ACCEPTS = ["text/plain", "text/event-stream", "application/json"]

Answer = Callable[[ChatStream, web.Request], Awaitable[web.StreamResponse]]

Serve = Callable[..., Awaitable[Server]]

both = pytest.mark.parametrize("handler_cancellation", [False, True], ids=["cancellation off", "cancellation on"])


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Yield a function that serves an app with the single route ``answer(chat_stream, request)``."""
    async with AsyncExitStack() as stack:

        async def start(chat_stream: ChatStream, answer: Answer, *, handler_cancellation: bool = False) -> Server:
            async def handler(request: web.Request) -> web.StreamResponse:
                return await answer(chat_stream, request)

            app = web.Application()
            aiohttp_session.setup(app, MemoryStorage())
            app.router.add_post("/chat_stream", handler)
            chat_stream.setup(app)
            runner = web.AppRunner(app, handler_cancellation=handler_cancellation, shutdown_timeout=1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            await chat_stream.wait_ready()
            return Server(chat_stream, runner, f"http://127.0.0.1:{runner.addresses[0][1]}")

        yield start


class Recorder:
    """The calls of the callbacks: the name in the header of the request, and the message."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []

    async def answer(self, chat_stream: ChatStream, request: web.Request) -> web.StreamResponse:
        name = request.headers["X-Name"]

        async def callback(callback_request: web.Request, message: str) -> None:
            assert callback_request is request
            await asyncio.sleep(0)
            self.messages.append((name, message))

        def plain_callback(callback_request: web.Request, message: str) -> None:
            assert callback_request is request
            self.messages.append((name, message))

        selected = callback if len(name) % 2 else plain_callback
        return await chat_stream.handle_chat_stream_request(request, callback=selected)


def ask(client: Client, name: str = "a", accept: str = "text/plain", **body: Any) -> PendingResponse:
    headers = {"Accept": accept, "X-Name": name}
    return client.session.post(f"{client.url}/chat_stream", json={"user_input": "hi"} | body, headers=headers)


async def read(client: Client, name: str = "a", accept: str = "text/plain", **body: Any) -> int:
    async with ask(client, name, accept, **body) as response:
        await response.read()
        return int(response.status)


async def test_each_concurrent_request_gets_its_callback_once(serve: Serve, client_of: ClientOf) -> None:
    recorder = Recorder()
    server = await serve(ChatStream(engine=echo, num_of_concurrent_executions=2, max_queue_size=9), recorder.answer)
    names = [f"{number:0{1 + number % 2}}-{number}" for number in range(20)]
    statuses = await asyncio.gather(
        *(read(client_of(server), name, ACCEPTS[number % 3]) for number, name in enumerate(names))
    )
    await until(lambda: len(recorder.messages) >= 20)
    assert Counter(name for name, _ in recorder.messages) == Counter(names)
    refused = {name for name, message in recorder.messages if message != "success"}
    assert refused == {name for name, status in zip(names, statuses, strict=True) if status == 503}
    assert all(
        message.startswith("unknown_error_occurred: too_many_requests")
        for _, message in recorder.messages
        if message != "success"
    )
    assert server.idle


@both
async def test_callbacks_receive_disconnects_before_and_during_streaming(
    serve: Serve, stepper: MakeStepper, client_of: ClientOf, handler_cancellation: bool
) -> None:
    recorder, engine = Recorder(), stepper()
    chat_stream = ChatStream(engine=engine, num_of_concurrent_executions=2, max_queue_size=18)
    server = await serve(chat_stream, recorder.answer, handler_cancellation=handler_cancellation)
    streaming = [
        asyncio.create_task(read(client_of(server), name, accept))
        for name, accept in (("while-1", ACCEPTS[0]), ("while-22", ACCEPTS[1]))
    ]
    await until(lambda: len(engine.calls) == 2)

    def both_have_begun() -> bool:
        engine.allow()  # either thread may take the step
        return sum(bool(turn.text) for turn in chat_stream.running_turns) == 2

    await until(both_have_begun)
    waiting = [
        asyncio.create_task(read(client_of(server), f"waits-{number:0{1 + number % 2}}", ACCEPTS[number % 3]))
        for number in range(18)
    ]
    await until(lambda: chat_stream.admission.waiting == 18)
    for asking in waiting:
        asking.cancel()
    await until(lambda: len(recorder.messages) == 18)
    assert {message for _, message in recorder.messages} == {BEFORE}
    assert len({name for name, _ in recorder.messages}) == 18
    recorder.messages.clear()
    for asking in streaming:
        asking.cancel()
    await until(lambda: all(turn.ending for turn in chat_stream.running_turns))
    engine.allow(100)
    await until(lambda: server.idle and len(recorder.messages) == 2)
    assert dict(recorder.messages) == {"while-1": WHILE, "while-22": WHILE}
    await asyncio.gather(*waiting, *streaming, return_exceptions=True)


async def test_a_callback_can_read_the_conversation(serve: Serve, stepper: MakeStepper, client_of: ClientOf) -> None:
    conversations: list[Conversation | None] = []

    async def answer(chat_stream: ChatStream, request: web.Request) -> web.StreamResponse:
        def callback(request: web.Request, message: str) -> None:
            conversations.append(chat_stream.conversation_of(request))

        return await chat_stream.handle_chat_stream_request(request, callback=callback)

    engine = stepper()
    server = await serve(ChatStream(engine=engine), answer)
    client = client_of(server)
    assert await read(client, user_input="") == 422
    await until(lambda: conversations == [None])
    asking = asyncio.create_task(read(client))
    engine.allow()
    await until(lambda: any(turn.text for turn in server.chat_stream.running_turns))
    asking.cancel()
    await until(lambda: server.stopping)
    engine.allow()
    await until(lambda: len(conversations) == 2)
    assert conversations[1] is not None
    (turn,) = conversations[1].turns
    assert (turn.user, turn.answer[:2], turn.state) == ("hi", "1 ", "interrupted")


@pytest.mark.parametrize("accept", ACCEPTS)
async def test_callbacks_receive_errors_with_their_reason(
    serve: Serve, stepper: MakeStepper, client_of: ClientOf, accept: str
) -> None:
    recorder, engine = Recorder(), stepper(fail_at=1)
    server = await serve(ChatStream(engine=engine), recorder.answer)
    await read(client_of(server), "empty", accept, user_input="")
    engine.allow(2)
    with contextlib.suppress(aiohttp.ClientError):
        await read(client_of(server), "fails", accept)
    await until(lambda: len(recorder.messages) == 2)
    messages = dict(recorder.messages)
    assert messages["empty"].startswith("unknown_error_occurred: invalid_value: user_input")
    assert messages["fails"].startswith("unknown_error_occurred: internal_server_error")


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_exception_of_a_callback_is_logged_only(
    serve: Serve, client_of: ClientOf, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    def plain(request: web.Request, message: str) -> None:
        raise ZeroDivisionError(f"the app broke on {message}")

    async def slow(request: web.Request, message: str) -> None:
        plain(request, message)

    async def answer(chat_stream: ChatStream, request: web.Request) -> web.StreamResponse:
        return await chat_stream.handle_chat_stream_request(request, callback=slow if is_async else plain)

    server = await serve(ChatStream(engine=echo, num_of_concurrent_executions=1, max_queue_size=0), answer)
    client = client_of(server)
    for _ in range(3):
        assert (await client.say("hi"))["text"] == "hi "
    await until(lambda: caplog.text.count("the app broke on success") == 3)
    assert server.idle


async def test_a_slow_callback_delays_neither_slot_response_nor_shutdown(
    serve: Serve, client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiochatstream.web.streaming.callbacks.CLOSE_SECONDS", 0.01)
    called, cancelled = asyncio.Event(), asyncio.Event()

    async def forever(request: web.Request, message: str) -> None:
        called.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def answer(chat_stream: ChatStream, request: web.Request) -> web.StreamResponse:
        return await chat_stream.handle_chat_stream_request(request, callback=forever)

    server = await serve(ChatStream(engine=echo, num_of_concurrent_executions=1, max_queue_size=0), answer)
    client = client_of(server)
    for _ in range(3):
        assert (await client.say("hi"))["text"] == "hi "
    await called.wait()
    assert server.idle
    await server.runner.cleanup()
    assert cancelled.is_set()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"user_input": "日本"}, 200, "日本 "),
        ({}, 422, "user_input"),
        ({"user_input": 5}, 422, "user_input: must be a string"),
        ({"user_input": "hi", "params": {"temperature": 3}}, 422, "params.temperature"),
        ({"user_input": "\ud800"}, 400, "not JSON"),
        ({"user_input": b"hi"}, 400, "request_body"),
        ({"user_input": "x" * 2000}, 413, "too large"),
        ('{"user_input": "日本"}'.encode(), 200, "日本 "),
        (b"{}", 422, "user_input"),
        (b"", 422, "user_input"),
        (b"hi", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b'{"user_input": "' + b"x" * 2000 + b'"}', 413, "too large"),
    ],
    ids=lambda value: None if isinstance(value, dict | bytes) else str(value),
)
async def test_request_body_replaces_the_body_and_is_validated_like_it(
    serve: Serve, client_of: ClientOf, body: dict[str, Any] | bytes, status: int, message: str
) -> None:
    async def answer(chat_stream: ChatStream, request: web.Request) -> web.StreamResponse:
        assert await request.read()
        return await chat_stream.handle_chat_stream_request(request, request_body=body)

    server = await serve(ChatStream(engine=echo, limits=Limits(max_request_bytes=1024)), answer)
    async with ask(client_of(server), user_input="what is not asked") as response:
        assert response.status == status
        assert message in await response.text()
