"""Tests that the log contains neither messages nor secrets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage
from cryptography.fernet import Fernet

from aiochatstream import ChatStream, CookieStorage, Feedback, GenerationParams, MemoryStorage
from aiochatstream.web.server_log import shorten_client_errors
from tests.helpers import ClientOf, StartServer, echo, role_of, sse_events
from tests.web.raw_requests import read_response, sending

WORD = "unmistakable"

ROLES = {"user": role_of("nothing"), "admin": role_of("ui_pass_phrase", "sesame")}

KEY = Fernet.generate_key().decode()

STORAGES: dict[str, Callable[[], AbstractStorage]] = {"memory": MemoryStorage, "cookie": lambda: CookieStorage(KEY)}


def engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
    yield f"{WORD} too"
    if "break" in messages[-1]["content"]:
        raise ZeroDivisionError


def refuse(request: web.Request, feedback: Feedback) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("kind", STORAGES)
async def test_no_log_line_contains_messages_or_secrets(
    start: StartServer, client_of: ClientOf, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    server = await start(ChatStream(engine=engine, client_roles=ROLES, on_feedback=refuse), STORAGES[kind]())
    client = client_of(server)
    secrets = {WORD, "sesame", KEY}

    async def send(path: str, status: int, accept: str = "*/*", **body: Any) -> str:
        secrets.update(cookie.value for cookie in client.session.cookie_jar)
        async with client.post(path, accept, **body) as response:
            assert response.status == status
            return await response.text()

    message_id = (await client.say(f"{WORD} one"))["message_id"]
    async with client.post(accept="text/event-stream", user_input=f"{WORD} two") as response:
        token = [event async for event in sse_events(response)][-1][1].get("commit", WORD)
    secrets.add(token)
    await send("/commit", 200 if kind == "cookie" else 400, commit=token)
    await send("/commit", 400, commit=WORD)
    await send("/chat_stream", 200, "text/event-stream", user_input=f"{WORD} break")
    await send("/chat_stream", 404, user_input=WORD, edit_message_id=WORD)
    await send("/chat_stream", 422, user_input=5, regenerate=WORD)
    await send("/set_feedback", 500, message_id=message_id, form_data=WORD)
    await send("/import", 422, messages=[{"role": "user", "content": WORD}])
    await send("/chat_stream", 200, user_input="sesame")
    await send("/clear_context", 200)
    async with client.session.get(f"{server.url}/history", headers={"Cookie": f"AIOHTTP_SESSION={WORD}"}) as response:
        assert response.status == 200
    assert "answer " in caplog.text
    assert "The engine failed" in caplog.text
    assert "role 'admin' granted" in caplog.text
    assert [secret for secret in secrets if secret in caplog.text] == []


async def test_a_malformed_request_is_logged_in_one_line(start: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    server = await start(ChatStream(engine=echo))
    log = logging.getLogger("aiohttp.server")
    log.addFilter(shorten_client_errors)
    try:
        async with sending(server, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n") as reader:
            assert (await read_response(reader))[0] == 400
    finally:
        log.removeFilter(shorten_client_errors)
    (record,) = (record for record in caplog.records if record.name == "aiohttp.server")
    assert record.exc_info is None
    line = record.getMessage()
    assert "\n" not in line
    assert len(line) < 300
