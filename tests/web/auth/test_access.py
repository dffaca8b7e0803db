"""Tests of access checks: roles of browsers by session, roles of agents by a header, and phrases that grant roles."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import aiohttp
import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from cryptography.fernet import Fernet

from aiochatstream import ChatStream, GenerationParams, MemoryStorage, hash_phrase
from aiochatstream.errors import SessionsNotSetUp
from aiochatstream.sessions.session_storage import MAX_COOKIE_BYTES
from aiochatstream.web.auth.rate_limit import ATTEMPTS, phrase_attempts
from aiochatstream.web.routes import ENDPOINTS
from tests.helpers import (
    Client,
    ClientOf,
    MakeStepper,
    StartServer,
    browser,
    echo,
    post_bytes,
    role_of,
    serving,
    sse_events,
    until,
)

SHA256 = hashlib.sha256(b"hashed").hexdigest()

ROLES = {
    "user": role_of("nothing", allow=["chat_stream", "clear_context", "history"]),
    "admin": role_of("ui_pass_phrase", "sesame", enable_dev_tool=True),
    "loader": role_of("ui_pass_phrase_sha256", SHA256, allow=["chat_stream", "history", "clear_context", "get_load"]),
    "boss": role_of("ui_pass_phrase_scrypt", hash_phrase("secret wish")),
    "robot": role_of("header_phrase", "beep", use_session=False),
    "android": role_of("header_phrase_sha256", SHA256, use_session=False, allow=["get_load"], enable_dev_tool=True),
}
WITH_AGENTS = {**ROLES, "agent": role_of("nothing", use_session=False, allow=["chat_stream", "stop", "clear_context"])}

SKIP = {"X-FastSession-Skip": "skip"}

GRANTED = "New role: 'admin' has been granted"


def storage(kind: str) -> AbstractStorage:
    return MemoryStorage() if kind == "memory" else EncryptedCookieStorage(Fernet(Fernet.generate_key()))


def cookie(client: Client) -> str:
    return next((item.value for item in client.session.cookie_jar), "")


async def ask(client: Client, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, Any]]:
    async with client.session.request(method, client.url + path, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def may_see_load(client: Client) -> bool:
    status, _ = await ask(client, "/get_load")
    assert status in (200, 403)
    return status == 200


async def agent_says(client: Client, text: str | None, phrase: str | None = None, **body: Any) -> tuple[int, Any, Any]:
    headers = {**SKIP, "Accept": "application/json", **({} if phrase is None else {"X-ChatStream-Auth-Header": phrase})}
    body["user_input"] = text
    async with client.session.post(f"{client.url}/chat_stream", json=body, headers=headers) as response:
        return response.status, await response.json(), response.headers


async def test_endpoints_that_a_role_may_not_call_are_a_403(start: StartServer, client_of: ClientOf) -> None:
    roles = {"user": role_of("nothing", allow=["chat_stream"])}
    client = client_of(await start(ChatStream(engine=echo, client_roles=roles)))
    for endpoint in ENDPOINTS.values():
        method = endpoint.route("/", echo).method
        path = endpoint.path.format(message_id="x")
        status, body = await ask(client, path, method) if endpoint.name != "metrics" else (200, {})
        if endpoint.name in ("healthz", "readyz", "metrics"):
            assert status == 200
        elif endpoint.name in ("chat_stream", "commit"):
            assert (status, body["error"]) == (422, "invalid_value")
        else:
            assert status == 403
            assert body == {
                "error": "forbidden",
                "success": False,
                "message": "Forbidden",
                "detail": "Denied on role layer.",
            }


async def test_access_is_refused_before_the_body_is_read(start: StartServer) -> None:
    roles = {"user": role_of("nothing", allow=[])}
    threads = set(threading.enumerate())
    server = await start(ChatStream(engine=echo, client_roles=roles))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = "POST /chat_stream HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    writer.write(head.encode())  # and no byte of the body
    status = await reader.readline()
    assert status.startswith(b"HTTP/1.1 403 ")
    assert server.idle
    new_threads = set(threading.enumerate()) - threads
    assert not [thread for thread in new_threads if thread.name.startswith("aiochatstream-prompt")]
    writer.close()


async def test_metrics_have_a_policy_independent_of_roles(start: StartServer, client_of: ClientOf) -> None:
    roles = {"user": role_of("nothing", allow=[])}
    for allowed, status in ((True, 200), (False, 403)):
        chat_stream = ChatStream(
            engine=echo, client_roles=roles, allow_metrics=partial(lambda result, _: result, allowed)
        )
        client = client_of(await start(chat_stream))
        async with client.session.get(f"{client.url}/metrics") as response:
            assert response.status == status


async def test_the_callback_receives_a_refusal() -> None:
    messages = []
    app = web.Application()
    chat_stream = ChatStream(engine=echo, client_roles={"user": role_of("nothing", allow=[])})
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.setup(app)

    async def stream(request: web.Request) -> web.StreamResponse:
        return await chat_stream.handle_chat_stream_request(request, None, lambda _, message: messages.append(message))

    app.router.add_post("/chat_stream", stream)
    async with serving(app) as url, browser(url) as client, client.post(user_input="hi") as response:
        assert response.status == 403
    assert messages == ["unknown_error_occurred: forbidden: Denied on role layer."]


@pytest.mark.parametrize("kind", ["memory", "cookie"])
@pytest.mark.parametrize("talked_before", [False, True])
async def test_typing_the_phrase_grants_the_role_to_this_session_only(
    start: StartServer, client_of: ClientOf, kind: str, talked_before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    calls = []

    def engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        calls.append(messages)
        return echo(messages, params)

    server = await start(ChatStream(engine=engine, client_roles=ROLES), storage(kind))
    client, other = client_of(server), client_of(server)
    texts = ["hi", "hi "] if talked_before else []
    if talked_before:
        await client.say("hi")
    await other.say("hi")
    calls.clear()
    before = cookie(client)
    assert not await may_see_load(client)
    assert (await client.say("sesame"))["text"] == GRANTED
    assert calls == []
    assert cookie(client) not in ("", before)
    assert await may_see_load(client)
    assert not await may_see_load(other)
    assert await client.texts() == texts
    await client.say("more")  # the role and the conversation go on
    assert await client.texts() == [*texts, "more", "more "]
    assert await may_see_load(client)
    async with client.post("/clear_context") as response:
        assert (await response.json())["success"] is True
    assert await may_see_load(client)
    assert "role 'admin' granted to a session from 127.0.0.1" in caplog.text
    assert "sesame" not in caplog.text
    assert server.idle


@pytest.mark.parametrize(("phrase", "role"), [("sesame", "admin"), ("hashed", "loader"), ("secret wish", "boss")])
async def test_every_kind_of_secret_grants_its_role(
    start: StartServer, client_of: ClientOf, phrase: str, role: str
) -> None:
    client = client_of(await start(ChatStream(engine=echo, client_roles=ROLES)))
    assert (await client.say(phrase + "!"))["text"] == f"{phrase}! "
    assert (await client.say(phrase))["text"] == f"New role: '{role}' has been granted"
    assert await may_see_load(client)
    assert (await client.say("sesame"))["text"] == GRANTED  # and from one to another


async def test_the_old_session_id_is_invalid_after_the_grant(start: StartServer, client_of: ClientOf) -> None:
    # a person who learned, or planted, the old id must not obtain the role
    sessions = MemoryStorage()
    server = await start(ChatStream(engine=echo, client_roles=ROLES), sessions)
    client, thief = client_of(server), client_of(server)
    await client.say("hi")
    stolen = {"AIOHTTP_SESSION": cookie(client)}
    thief.session.cookie_jar.update_cookies(stolen)
    assert await thief.texts() == ["hi", "hi "]
    await client.say("sesame")
    assert len(sessions) == 1
    assert await may_see_load(client)
    assert not await may_see_load(thief)
    assert await thief.texts() == []


async def test_a_request_whose_body_arrives_after_the_grant_cannot_use_the_old_session(
    start: StartServer, client_of: ClientOf
) -> None:
    class Counting(MemoryStorage):
        loads = 0

        async def load_session(self, request: web.Request) -> aiohttp_session.Session:
            self.loads += 1
            return await super().load_session(request)

    sessions = Counting()
    server = await start(ChatStream(engine=echo, client_roles=ROLES), sessions)
    client = client_of(server)
    await client.say("secret")
    headers = f"Connection: close\r\nCookie: AIOHTTP_SESSION={cookie(client)}\r\n"
    request = post_bytes('{"regenerate": true}', headers=headers)
    head, _, body = request.partition(b"{")
    loads = sessions.loads
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head)
    await until(lambda: sessions.loads > loads)  # the access check has passed, and the body is awaited
    await client.say("sesame")
    writer.write(b"{" + body)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert b"nothing_to_regenerate" in answer
    assert b"secret" not in answer


async def test_roles_cannot_be_granted_in_sessions_that_clients_can_edit(start: StartServer) -> None:
    with pytest.raises(SessionsNotSetUp, match="client_roles: cannot be used with SimpleCookieStorage"):
        await start(ChatStream(engine=echo, client_roles=ROLES), SimpleCookieStorage())
    await start(ChatStream(engine=echo, client_roles={"user": ROLES["user"]}), SimpleCookieStorage())


async def test_an_apps_session_data_survives_the_grant() -> None:
    app = web.Application()
    chat_stream = ChatStream(engine=echo, client_roles=ROLES)
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app)

    async def login(request: web.Request) -> web.Response:
        session = await aiohttp_session.get_session(request)
        known = session.get("login")
        session["login"] = "anna"
        return web.json_response({"known": known})

    app.router.add_get("/login", login)
    async with serving(app) as url, browser(url) as client:
        assert (await ask(client, "/login"))[1] == {"known": None}
        await client.say("sesame")
        assert (await ask(client, "/login"))[1] == {"known": "anna"}
        assert await may_see_load(client)


async def test_a_full_cookie_makes_room_for_the_role(start: StartServer, client_of: ClientOf) -> None:
    roles = {"user": ROLES["user"], "x" * 1500: role_of("ui_pass_phrase", "sesame")}
    client = client_of(await start(ChatStream(engine=echo, client_roles=roles), storage("cookie")))
    for number in range(12):
        await client.say(f"{number} " + "".join(chr(0x4E00 + number * 500 + place) for place in range(100)))
    (item,) = client.session.cookie_jar
    assert len(item.OutputString()) > MAX_COOKIE_BYTES - 1500
    await client.say("sesame")
    (item,) = client.session.cookie_jar
    assert len(item.OutputString()) <= MAX_COOKIE_BYTES
    assert await may_see_load(client)
    assert (await client.texts())[-1].startswith("11 ")


async def test_the_grant_keeps_a_conversation_that_another_worker_began(
    start: StartServer, client_of: ClientOf
) -> None:
    key = Fernet.generate_key()
    first, other = [
        await start(ChatStream(engine=echo, client_roles=ROLES), EncryptedCookieStorage(Fernet(key))) for _ in range(2)
    ]
    client = client_of(first)
    await client.say("hi")
    client = Client(client.session, other.url)
    await client.say("sesame")
    assert await client.texts() == ["hi", "hi "]
    assert await may_see_load(client)


@pytest.mark.parametrize(
    "headers",
    [
        {"Accept": "text/plain"},
        {"Accept": "application/json"},
        {"Accept": "text/event-stream"},
        {"X-ChatStream-Wire": "cumulative-eos"},
        {"X-ChatStream-Wire": "cumulative"},
    ],
)
async def test_every_format_reports_the_grant_with_the_headers_of_an_answer(
    start: StartServer, client_of: ClientOf, headers: dict[str, str]
) -> None:
    client = client_of(await start(ChatStream(engine=echo, client_roles=ROLES)))

    async def post(text: str) -> aiohttp.ClientResponse:
        return await client.session.post(f"{client.url}/chat_stream", json={"user_input": text}, headers=headers)

    async with await post("hi") as response:
        assert "X-ChatStream-API-DevTool-Enabled" not in response.headers
        await response.read()
    async with await post("sesame") as response:
        assert response.status == 200
        assert response.headers["X-ChatStream-API-DevTool-Enabled"] == "enabled"
        assert uuid.UUID(response.headers["X-ChatStream-Last-Generated-Message-Id"]).version == 4
        if headers.get("Accept") == "text/event-stream":
            events = [event async for event in sse_events(response)]
            assert [name for name, _ in events] == ["start", "delta", "done"]
            assert events[1][1] == {"text": GRANTED}
            assert events[2][1]["finish_reason"] == "stop"
        elif headers.get("Accept") == "application/json":
            messages = await response.json()
            assert (messages["text"], messages["usage"]["completion_tokens"]) == (GRANTED, 0)
        else:
            end = "<::EOS::>" if headers.get("X-ChatStream-Wire") == "cumulative-eos" else ""
            assert await response.text() == GRANTED + end
    assert await may_see_load(client)
    async with await post("more") as response:  # the header is in each answer for this role
        assert response.headers["X-ChatStream-API-DevTool-Enabled"] == "enabled"
        await response.read()
    async with await post("hashed") as response:  # a role without the tool
        assert "X-ChatStream-API-DevTool-Enabled" not in response.headers
        await response.read()


async def test_regenerate_and_messages_that_cannot_be_phrases_are_not_compared(
    start: StartServer, client_of: ClientOf
) -> None:
    # chatstream crashes on a regeneration if a phrase is hashed
    server = await start(ChatStream(engine=echo, client_roles=ROLES, num_of_concurrent_executions=1))
    client = client_of(server)
    async with client.post(regenerate=True) as response:
        assert (response.status, (await response.json())["error"]) == (409, "nothing_to_regenerate")
    await client.say("hi")
    assert (await client.say(regenerate=True))["text"] == "hi "
    assert (await client.say("sesame", regenerate=True))["text"] == "hi "
    compared = len(server.chat_stream.phrase_attempts)
    server.chat_stream.phrase_attempts = attempts = phrase_attempts()
    for text in ("sesame\n", "x" * 129, "a\nb", "a\u2028b"):
        assert (await client.say(text))["text"] == f"{text} "
    assert (compared, len(attempts)) == (1, 0)
    assert not await may_see_load(client)


async def test_above_the_limit_typed_phrases_are_ignored_with_one_warning(
    start: StartServer, client_of: ClientOf, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    chat_stream = ChatStream(engine=echo, client_roles=ROLES)
    chat_stream.phrase_attempts = phrase_attempts(lambda: now)
    client = client_of(await start(chat_stream))
    for number in range(ATTEMPTS):
        await client.say(f"guess {number}")
    for _ in range(3):
        assert (await client.say("sesame"))["text"] == "sesame "
    assert not await may_see_load(client)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "Too many pass-phrase attempts from 127.0.0.1 (over 30 in 60 s); ignoring phrases from this address for now."
    ]
    now = 60.0
    assert (await client.say("sesame"))["text"] == GRANTED


async def test_above_the_limit_header_phrases_are_refused_and_right_phrases_take_no_attempt(
    start: StartServer, client_of: ClientOf, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    chat_stream = ChatStream(engine=echo, client_roles=ROLES)
    chat_stream.header_attempts = phrase_attempts(lambda: now)
    client = client_of(await start(chat_stream))

    async def see_load(phrase: str) -> tuple[int, Any]:
        return await ask(client, "/get_load", **SKIP, **{"X-ChatStream-Auth-Header": phrase})

    for _ in range(ATTEMPTS + 1):
        assert (await see_load("hashed"))[0] == 200
    for number in range(ATTEMPTS):
        assert (await see_load(f"guess {number}"))[0] == 401
    for phrase in ("guess", "hashed", "hashed"):
        status, refusal = await see_load(phrase)
        assert (status, refusal["error"]) == (429, "too_many_attempts")
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert (await client.say("sesame"))["text"] == GRANTED  # typed phrases have separate attempts
    now = 2.0
    assert (await see_load("hashed"))[0] == 200


async def test_retries_while_the_model_loads_take_no_attempts(start: StartServer, client_of: ClientOf) -> None:
    chat_stream = ChatStream(engine=echo, client_roles=ROLES)
    client = client_of(await start(chat_stream))
    chat_stream.state = "starting"
    for _ in range(ATTEMPTS + 1):
        async with client.post(user_input="sesame") as response:
            assert response.status == 503
    chat_stream.state = "ready"
    assert (await client.say("sesame"))["text"] == GRANTED


async def test_a_hashed_phrase_is_compared_off_the_event_loop(
    start: StartServer, client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    scrypt = hashlib.scrypt

    def recording_scrypt(*args: Any, **kwargs: Any) -> bytes:
        threads.append(threading.current_thread())
        return scrypt(*args, **kwargs)

    monkeypatch.setattr(hashlib, "scrypt", recording_scrypt)
    client = client_of(await start(ChatStream(engine=echo, client_roles=ROLES)))
    threads.clear()  # the validation at construction
    await client.say("hi")
    assert len(threads) == 1
    assert threading.main_thread() not in threads


async def test_a_granted_role_that_no_longer_exists_is_lost(start: StartServer, client_of: ClientOf) -> None:
    sessions = MemoryStorage()
    client = client_of(await start(ChatStream(engine=echo, client_roles=ROLES), sessions))
    await client.say("sesame")
    assert await may_see_load(client)
    for changed in (
        {name: role for name, role in ROLES.items() if name != "admin"},
        {**ROLES, "admin": role_of("header_phrase", "sesame", use_session=False)},
    ):
        server = await start(ChatStream(engine=echo, client_roles=changed), sessions)
        assert not await may_see_load(Client(client.session, server.url))
    again = await start(ChatStream(engine=echo, client_roles=ROLES), sessions)
    assert await may_see_load(Client(client.session, again.url))


async def test_an_agent_sends_its_phrase_in_a_header(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=echo, client_roles=ROLES)))
    status, answer, headers = await agent_says(client, "hi", "beep")
    assert (status, answer["text"]) == (200, "hi ")
    assert "X-ChatStream-API-DevTool-Enabled" not in headers
    assert (await agent_says(client, "hi", "hashed"))[0] == 403  # the android may only see the load
    status, _ = await ask(client, "/get_load", **SKIP, **{"X-ChatStream-Auth-Header": "hashed"})
    assert status == 200
    for phrase in ("boop", "", "sesame", "beep beep", "bee\u00fcp"):
        status, refusal, _ = await agent_says(client, "hi", phrase)
        assert status == 401
        assert refusal == {
            "error": "unauthorized",
            "success": False,
            "message": "Unauthorized",
            "detail": "Denied on role layer.",
        }


async def test_an_agent_without_a_phrase_has_the_agents_default_role_if_there_is_one(
    start: StartServer, client_of: ClientOf
) -> None:
    for roles in (None, ROLES):
        client = client_of(await start(ChatStream(engine=echo, client_roles=roles)))
        assert (await agent_says(client, "hi"))[0] == 401
        assert (await ask(client, "/healthz", **SKIP))[0] == 200
        assert (await ask(client, "/readyz", **SKIP))[0] == 200
        assert (await ask(client, "/health", **SKIP))[0] == 200
    client = client_of(await start(ChatStream(engine=echo, client_roles=WITH_AGENTS)))
    assert (await agent_says(client, "hi"))[0] == 200
    assert (await ask(client, "/get_load", **SKIP))[0] == 403
    assert (await agent_says(client, "hi", "boop"))[0] == 401  # a wrong phrase does not grant the default role


@pytest.mark.parametrize("kind", ["memory", "cookie"])
async def test_an_agents_conversation_is_not_stored(start: StartServer, client_of: ClientOf, kind: str) -> None:
    server = await start(ChatStream(engine=echo, client_roles=WITH_AGENTS), storage(kind))
    client = client_of(server)
    await client.say("mine")
    for accept in ("text/plain", "application/json", "text/event-stream"):
        headers = {**SKIP, "Accept": accept}
        async with client.session.post(
            f"{server.url}/chat_stream", json={"user_input": "sesame"}, headers=headers
        ) as response:
            assert response.status == 200
            assert "Set-Cookie" not in response.headers
            assert GRANTED not in await response.text()  # typed phrases are for browsers
    assert (await agent_says(client, None, regenerate=True))[1]["error"] == "nothing_to_regenerate"
    assert (await ask(client, "/chat_stream/stop", "POST", **SKIP))[1]["error"] == "not_running_here"
    status, cleared = await ask(client, "/clear_context", "POST", **SKIP)
    assert (status, cleared["message"]) == (200, "no context.")
    assert await client.texts() == ["mine", "mine "]
    async with client.session.get(f"{client.url}/metrics") as response:
        assert "aiochatstream_sessions 1.0" in await response.text()
    assert server.idle


async def test_agents_need_no_sessions_in_the_app() -> None:
    app, inner = web.Application(), web.Application()
    chat_stream = ChatStream(engine=echo, client_roles=WITH_AGENTS)
    chat_stream.add_endpoints(inner)
    app.add_subapp("/chat", inner)
    async with serving(app) as url, browser(f"{url}/chat") as client:
        assert (await agent_says(client, "hi"))[1]["text"] == "hi "
        async with client.post(user_input="hi") as response:
            assert response.status == 500
            assert "aiohttp_session.setup" in json.loads(await response.text())["detail"]


async def test_concurrent_agents_are_separate_users(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    client = client_of(
        await start(ChatStream(engine=engine, client_roles=WITH_AGENTS, params=GenerationParams(max_new_tokens=1)))
    )
    engine.allow(2)
    answers = await asyncio.gather(agent_says(client, "one"), agent_says(client, "two"))
    assert [answer[0] for answer in answers] == [200, 200]
    assert sorted(len(messages) for messages in engine.calls) == [1, 1]
