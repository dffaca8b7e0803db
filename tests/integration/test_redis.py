"""Tests of two servers that share a Redis, like worker processes, and of a Redis that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ClientResponse
from redis.asyncio import Redis

from aiochatstream import ChatStream, GenerationParams, MemoryStorage
from aiochatstream.conversations.redis_store import RedisConversationStore
from aiochatstream.sessions.redis_storage import RedisStorage
from tests.helpers import (
    PATIENCE,
    Client,
    ClientOf,
    EngineFunction,
    MakeStepper,
    PendingResponse,
    Server,
    StartServer,
    echo,
    sse_events,
    until,
)
from tests.redis_server import RedisServer

pytestmark = pytest.mark.both_loops

NewServer = Callable[..., Awaitable[Server]]


@pytest.fixture
async def new_server(start: StartServer, redis_server: RedisServer) -> AsyncIterator[NewServer]:
    """Yield a function that starts a server with a Redis client of its own, like a worker process."""
    clients: list[Redis] = []

    async def make(
        engine: EngineFunction = echo, *, sessions_in_redis: bool = True, shares_queue: bool = False, **options: Any
    ) -> Server:
        clients.append(client := Redis.from_url(redis_server.url))
        chat_stream = ChatStream(engine=engine, conversation_store=RedisConversationStore(client), **options)
        if shares_queue:
            chat_stream.share_queue(client, "all")
        server: Server = await start(chat_stream, RedisStorage(client) if sessions_in_redis else MemoryStorage())
        return server

    yield make
    for client in clients:
        await client.aclose()


def at(server: Server, client: Client) -> Client:
    """Return the same user at another server. Browsers share cookies among the ports of a host."""
    return Client(client.session, server.url)


async def load_of(server: Server, client: Client) -> tuple[dict[str, Any], dict[str, int]]:
    async with client.session.get(f"{server.url}/get_load") as response:
        load = await response.json()
    return load["chatstream_workers"][0], load["queue_positions"]


def running_text(server: Server) -> str:
    return "".join(turn.text for turn in server.chat_stream.running_turns)


async def body_of(request: PendingResponse) -> tuple[int, Any]:
    async with request as response:
        return response.status, await response.json()


async def test_an_idle_connection_closed_by_redis_fails_no_request(
    new_server: NewServer, client_of: ClientOf, redis: Redis
) -> None:
    client = client_of(await new_server())
    for text in ("one", "two", "three"):
        await client.say(text)
        await redis.client_kill_filter(_type="normal", skipme=True)
        assert (await client.texts())[-2:] == [text, f"{text} "]
        await redis.client_kill_filter(_type="normal", skipme=True)


async def test_a_conversation_continues_at_either_server(
    new_server: NewServer, client_of: ClientOf, stepper: MakeStepper
) -> None:
    here, there = await new_server(), await new_server(engine := stepper(), params=GenerationParams(max_new_tokens=1))
    client = client_of(here)
    await client.say("one")
    engine.allow(2)
    await at(there, client).say("two")
    assert [message["content"] for message in engine.calls[-1]] == ["one", "one ", "two"]
    await client.say("three")
    await at(there, client).say(regenerate=True)
    assert [message["content"] for message in engine.calls[-1]] == ["one", "one ", "two", "1 ", "three"]
    for server in (here, there):
        assert await at(server, client).texts() == ["one", "one ", "two", "1 ", "three", "1 "]
        assert await client_of(server).texts() == []


async def test_a_conversation_is_busy_at_both_servers_while_an_answer_runs(
    new_server: NewServer, client_of: ClientOf, stepper: MakeStepper
) -> None:
    here, there = await new_server(engine := stepper(), params=GenerationParams(max_new_tokens=1)), await new_server()
    client = client_of(here)
    engine.allow(1)
    await client.say("one")
    running = asyncio.create_task(client.say("two"))
    await until(lambda: len(engine.calls) == 2)
    async with at(there, client).post(user_input="three") as response:
        assert response.status == 409
        assert (await response.json())["error"] == "conversation_busy"
        assert int(response.headers["Retry-After"]) >= 1
    assert (await at(there, client).say("elsewhere", conversation="other"))["text"] == "elsewhere "
    assert (await client_of(there).say("mine"))["text"] == "mine "
    assert there.idle
    engine.allow(1)
    await running
    await at(there, client).say("four")
    assert await client.texts() == ["one", "1 ", "two", "1 ", "four", "four "]


async def test_stop_reaches_the_other_server_and_frees_the_conversation(
    new_server: NewServer, client_of: ClientOf, stepper: MakeStepper
) -> None:
    here, there = await new_server(engine := stepper(), params=GenerationParams(max_new_tokens=4)), await new_server()
    client = client_of(here)
    engine.allow(4)
    await client.say("one")
    status, answer = await body_of(at(there, client).post("/chat_stream/stop"))
    assert (status, answer["error"]) == (404, "not_running_here")
    engine.allow(1)
    running = asyncio.create_task(client.say("two"))
    await until(lambda: running_text(here) == "1 ")
    stopping = asyncio.create_task(body_of(at(there, client).post("/chat_stream/stop")))
    await until(lambda: any(turn.ending for turn in here.chat_stream.running_turns))
    sending = asyncio.create_task(at(there, client).say("three"))  # the previous answer is still in its last step
    engine.allow(1)
    status, stopped = await stopping
    ended = await running
    assert (status, stopped["success"], stopped["message_id"]) == (200, True, ended["message_id"])
    assert (ended["finish_reason"], ended["text"]) == ("cancelled", "1 2 ")
    assert (await sending)["text"] == "three "
    assert await client.texts() == ["one", "1 2 3 4 ", "two", "1 2 ", "three", "three "]


async def test_clear_context_discards_the_answer_at_the_other_server(
    new_server: NewServer, client_of: ClientOf, stepper: MakeStepper
) -> None:
    here, there = await new_server(engine := stepper(), params=GenerationParams(max_new_tokens=4)), await new_server()
    client = client_of(here)
    engine.allow(4)
    await client.say("one")
    engine.allow(1)
    running = asyncio.create_task(client.say("two"))
    await until(lambda: running_text(here) == "1 ")
    clearing = asyncio.create_task(body_of(at(there, client).post("/clear_context")))
    await until(lambda: any(turn.discarded for turn in here.chat_stream.running_turns))
    engine.allow(1)
    assert await clearing == (200, {"success": True, "message": "Context successfully cleared"})
    assert (await running)["finish_reason"] == "cancelled"
    for server in (here, there):
        assert await at(server, client).texts() == []
    await at(there, client).say("anew")
    assert await client.texts() == ["anew", "anew "]


async def test_an_answer_without_its_hold_overwrites_nothing(
    new_server: NewServer, client_of: ClientOf, stepper: MakeStepper, redis: Redis
) -> None:
    here, there = await new_server(engine := stepper(), params=GenerationParams(max_new_tokens=1)), await new_server()
    client = client_of(here)
    engine.allow(1)
    await client.say("one")
    running = asyncio.create_task(body_of(client.post(accept="application/json", user_input="late")))
    await until(lambda: len(engine.calls) == 2)
    (hold,) = [key async for key in redis.scan_iter("*hold*")]
    await redis.delete(hold)  # as if this process had been suspended for longer than the hold lasts
    await at(there, client).say("two")
    engine.allow(1)
    status, answer = await running
    assert (status, answer["error"]) == (409, "conversation_changed")
    assert await client.texts() == ["one", "1 ", "two", "two "]


async def test_servers_with_different_namespaces_are_independent(
    new_server: NewServer, client_of: ClientOf, stepper: MakeStepper
) -> None:
    first = await new_server(engine := stepper(), params=GenerationParams(max_new_tokens=1), namespace="one")
    other = await new_server(namespace="other")
    client = client_of(first)
    engine.allow(1)
    await client.say("at one")
    running = asyncio.create_task(client.say("still at one"))
    await until(lambda: len(engine.calls) == 2)
    await at(other, client).say("at the other")
    assert (await body_of(at(other, client).post("/chat_stream/stop")))[0] == 404
    assert (await body_of(at(other, client).post("/clear_context")))[0] == 200
    engine.allow(1)
    await running
    assert await client.texts() == ["at one", "1 ", "still at one", "1 "]


async def test_settings_apply_at_either_server_and_a_new_role_has_a_new_identity(
    start: StartServer, new_server: NewServer, client_of: ClientOf
) -> None:
    roles = {
        "user": {"apis": {"allow": "all", "auth_method": "nothing", "use_session": True}},
        "developer": {"apis": {"allow": "all", "auth_method": "ui_pass_phrase", "ui_pass_phrase": "open sesame"}},
    }
    here, there = [await new_server(client_roles=roles) for _ in range(2)]
    client = client_of(here)
    await client.say("one")
    assert (await body_of(client.post("/set_generation_params", temperature=0.25)))[0] == 200
    async with client.session.get(f"{there.url}/get_generation_params") as response:
        assert (await response.json())["generation_params"]["temperature"] == 0.25
    before = {cookie.value for cookie in client.session.cookie_jar}
    assert "granted" in (await at(there, client).say("open sesame"))["text"]
    after = {cookie.value for cookie in client.session.cookie_jar}
    assert not before & after
    stranger = client_of(here)
    stranger.session.cookie_jar.update_cookies({"AIOHTTP_SESSION": before.pop()})
    assert await stranger.texts() == []
    assert await client.texts() == ["one", "one "]


# Failures of Redis. Their detection takes seconds, so these tests run on one loop only.

one_loop = pytest.mark.asyncio(loop_factories=["uvloop"])

NEED_REDIS = [
    ("POST", "/chat_stream", {"user_input": "hi"}),
    ("POST", "/chat_stream/stop", {}),
    ("POST", "/clear_context", {}),
    ("POST", "/set_generation_params", {"temperature": 0.5}),
    ("GET", "/get_generation_params", None),
    ("GET", "/history", None),
    ("DELETE", "/history/some-id", None),
    ("GET", "/export", None),
    ("POST", "/import", {"messages": []}),
]


@asynccontextmanager
async def lost(redis_server: RedisServer, how: str) -> AsyncIterator[None]:
    """Kill or pause Redis during the block."""
    if how == "killed":
        redis_server.kill()
        yield
        redis_server.start()
    else:
        redis_server.pause()
        yield
        redis_server.resume()


async def check_unavailable(client: Client, method: str, path: str, body: Any) -> None:
    async with asyncio.timeout(PATIENCE), client.session.request(method, client.url + path, json=body) as response:
        body = await response.json()
        assert (response.status, body["error"]) == (503, "store_unavailable"), (path, body)
        assert int(response.headers["Retry-After"]) >= 1
        assert "Set-Cookie" not in response.headers


@one_loop
@pytest.mark.parametrize("how", ["killed", "paused"])
@pytest.mark.parametrize("sessions_in_redis", [True, False])
async def test_requests_get_503_without_redis_and_the_server_recovers(
    new_server: NewServer,
    client_of: ClientOf,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    how: str,
    sessions_in_redis: bool,
) -> None:
    server = await new_server(sessions_in_redis=sessions_in_redis)
    client = client_of(server)
    await client.say("one")
    needed = [request for request in NEED_REDIS if sessions_in_redis or "params" not in request[1]]
    async with lost(redis_server, how):
        await asyncio.gather(*(check_unavailable(client, *request) for request in needed))
        async with client.session.get(f"{server.url}/readyz") as response:
            assert response.status == 200
        assert server.idle
    complaints = [record.getMessage() for record in caplog.records if "is not available" in record.getMessage()]
    assert len(complaints) == len(set(complaints)) >= 1  # a line for sessions and a line for conversations
    assert (await client.say("two"))["text"] == "two "
    messages = ["one", "one "] if how == "paused" else []
    assert await client.texts() == [*messages, "two", "two "]
    assert "is available for" in caplog.text


@one_loop
async def test_a_session_that_cannot_be_saved_is_a_503(
    new_server: NewServer, client_of: ClientOf, redis_server: RedisServer
) -> None:
    client = client_of(await new_server())  # a new user, without anything to load
    redis_server.kill()
    await check_unavailable(client, "POST", "/set_generation_params", {"temperature": 0.5})


@one_loop
@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream"])
async def test_a_running_answer_survives_a_restart_of_redis(
    new_server: NewServer, client_of: ClientOf, stepper: MakeStepper, redis_server: RedisServer, accept: str
) -> None:
    server = await new_server(engine := stepper(), sessions_in_redis=False, params=GenerationParams(max_new_tokens=3))
    client = client_of(server)
    engine.allow(4)
    await client.say("one")
    async with client.post(accept=accept, user_input="two") as response:
        await until(lambda: running_text(server) == "1 ")
        redis_server.kill()
        engine.allow(2)
        await until(lambda: server.chat_stream.admission.running == 0)  # the answer is about to be saved
        redis_server.start()
        assert await text_of(response) == "1 2 3 "
    assert await client.texts() == ["one", "1 2 3 ", "two", "1 2 3 "]


@one_loop
@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
async def test_an_answer_that_cannot_be_saved_ends_with_an_error(
    new_server: NewServer,
    client_of: ClientOf,
    stepper: MakeStepper,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    accept: str,
) -> None:
    monkeypatch.setattr("aiochatstream.conversations.redis_store.SAVE_SECONDS", 0.1)
    server = await new_server(engine := stepper(), sessions_in_redis=False, params=GenerationParams(max_new_tokens=2))
    client = client_of(server)
    engine.allow(2)
    await client.say("one")
    engine.allow(1)
    asking = asyncio.create_task(client.post(accept=accept, user_input="two").__aenter__())
    await until(lambda: running_text(server) == "1 ")
    redis_server.pause()
    engine.allow(1)
    async with asyncio.timeout(PATIENCE), await asking as response:
        if accept == "text/plain":
            with pytest.raises(ClientPayloadError):
                await response.read()
        elif accept == "application/json":
            assert (response.status, (await response.json())["error"]) == (503, "store_unavailable")
        else:
            seen = [event async for event in sse_events(response)]
            assert [name for name, _ in seen] == ["start", "delta", "delta", "error"]
            assert seen[-1][1]["error"]["error"] == "store_unavailable"
    assert server.idle
    redis_server.resume()
    engine.allow(2)
    await client.say("three", conversation="other")


async def text_of(response: ClientResponse) -> str:
    """Return the text of an answer. Fails unless it is complete."""
    if response.content_type == "text/plain":
        return await response.text()
    events = [event async for event in sse_events(response)]
    assert events[-1][0] == "done"
    return "".join(data["text"] for name, data in events if name == "delta")


async def test_servers_share_slots_and_a_queue(
    new_server: NewServer, client_of: ClientOf, stepper: MakeStepper
) -> None:
    options: dict[str, Any] = {"num_of_concurrent_executions": 1, "max_queue_size": 2, "shares_queue": True}
    one_piece = GenerationParams(max_new_tokens=1)
    engines = [stepper() for _ in range(2)]
    here, there = [await new_server(engine, params=one_piece, **options) for engine in engines]
    running = asyncio.create_task(client_of(here).say("first"))
    await until(lambda: engines[0].calls)
    events: list[tuple[str, Any]] = []
    client = client_of(there)

    async def ask() -> None:
        async with client.post(accept="text/event-stream", user_input="second") as response:
            async for name, data in sse_events(response):
                events.append((name, data.get("position")))

    asking = asyncio.create_task(ask())
    await until(lambda: events)
    third = asyncio.create_task(client_of(here).say("third"))
    await until(lambda: here.chat_stream.admission.total_waiting == there.chat_stream.admission.total_waiting == 2)
    async with client_of(there).post(user_input="fourth") as response:
        assert response.status == 503
        assert (await response.json())["error"] == "too_many_requests"
    worker, positions = await load_of(there, client)
    assert [worker[name] for name in ("processing", "waiting", "max_processing", "max_waiting")] == [1, 2, 1, 2]
    assert positions == {"main": 1}
    assert not engines[1].calls
    engines[0].allow(1)
    await running
    await until(lambda: engines[1].calls)
    assert len(engines[0].calls) == 1
    engines[1].allow(1)
    await asking
    assert events == [("queued", 1), ("start", None), ("delta", None), ("done", None)]
    engines[0].allow(1)
    await third
    await until(lambda: there.chat_stream.admission.total_running == 0)
