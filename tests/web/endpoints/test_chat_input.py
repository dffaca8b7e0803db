"""Tests of promise 7: no input causes a 500, and errors name the field and its range."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiochatstream import ChatStream, GenerationParams, Limits
from aiochatstream.params import ParamOverrides
from tests.helpers import ClientOf, Server, StartServer, echo, post_bytes


@pytest.fixture
async def server(start: StartServer) -> Server:
    return await start(ChatStream(engine=echo, params=GenerationParams(max_new_tokens=64)), client_max_size=1 << 21)


INVALID_BODIES = [
    ('{"user_input": "hi"', 400, "bad_request", "The body is not JSON: EOF while parsing"),
    ("\xff\xfe", 400, "bad_request", "not JSON"),
    ('{"user_input": "\\ud800"}', 400, "bad_request", "not JSON"),
    ("[" * 100_000, 400, "bad_request", "not JSON"),
    ('{"user_input": "hi", "something": NaN}', 400, "bad_request", "not JSON"),
    ('{"user_input": "hi", "something": [-Infinity]}', 400, "bad_request", "not JSON"),
    ("[]", 422, "invalid_value", "The body must be a JSON object."),
    ("{}", 422, "invalid_value", "user_input"),
    ("", 422, "invalid_value", "user_input"),
    ('{"user_input": ""}', 422, "invalid_value", "user_input"),
    ('{"user_input": " \\n"}', 422, "invalid_value", "user_input"),
    ('{"user_input": null}', 422, "invalid_value", "user_input"),
    ('{"user_input": 5}', 422, "invalid_value", "user_input: must be a string"),
    ('{"user_input": "hi", "regenerate": "yes"}', 422, "invalid_value", "regenerate"),
    ('{"user_input": "hi", "conversation": ""}', 422, "invalid_value", "conversation: must be a name of 1 to 64"),
    ('{"user_input": "hi", "conversation": "a/b"}', 422, "invalid_value", "conversation"),
    ('{"user_input": "hi", "conversation": "a\\n"}', 422, "invalid_value", "conversation"),
    ('{"user_input": "hi", "system": 5}', 422, "invalid_value", "system: must be a string of at most 10000 characters"),
    ('{"user_input": "hi", "system": "cat"}', 422, "invalid_value", "system: must be left out"),
    ('{"user_input": "hi", "params": []}', 422, "invalid_value", "params"),
    ('{"user_input": "hi", "params": {"temperature": 2.1}}', 422, "invalid_value", "from 0 (greedy) to 2"),
    ('{"user_input": "hi", "params": {"temperature": NaN}}', 422, "invalid_value", "params.temperature"),
    ('{"user_input": "hi", "params": {"top_k": 1.5}}', 422, "invalid_value", "params.top_k"),
    ('{"user_input": "hi", "params": {"top_p": -0.1}}', 422, "invalid_value", "params.top_p"),
    ('{"user_input": "hi", "params": {"repetition_penalty": 0}}', 422, "invalid_value", "params.repetition_penalty"),
    ('{"user_input": "hi", "params": {"max_new_tokens": 0}}', 422, "invalid_value", "params.max_new_tokens"),
    ('{"user_input": "hi", "params": {"max_new_tokens": 65}}', 422, "invalid_value", "from 1 to 64"),
    ('{"user_input": "hi", "params": {"seed": 9223372036854775808}}', 422, "invalid_value", "params.seed"),
    ('{"user_input": "hi", "params": {"stop": "x"}}', 422, "invalid_value", "params.stop"),
    ('{"user_input": "hi", "params": {"stop": [""]}}', 422, "invalid_value", "params.stop"),
    ('{"user_input": "hi", "params": {"min_p": -1}}', 422, "invalid_value", "params.min_p: must be a number from 0"),
    ('{"user_input": "hi", "params": {"logit_bias": {"x": 1}}}', 422, "invalid_value", "params.logit_bias: must be"),
    ('{"user_input": "hi", "params": {"logit_bias": {"5": 101}}}', 422, "invalid_value", "params.logit_bias: must be"),
    ('{"user_input": "hi", "edit_message_id": 1}', 422, "invalid_value", "edit_message_id: must be the message id"),
    (
        '{"regenerate": true, "edit_message_id": "x"}',
        422,
        "invalid_value",
        "edit_message_id: must be used with user_input",
    ),
    ('{"user_input": "hi", "continue": 1}', 422, "invalid_value", "continue: must be true or false"),
    ('{"regenerate": true, "continue": true}', 422, "invalid_value", "continue: cannot be true together"),
    ('{"user_input": "hi", "if_turn": "3"}', 422, "invalid_value", "if_turn: must be the turn number"),
    ('{"user_input": "hi", "if_turn": -1}', 422, "invalid_value", "if_turn: must be the turn number"),
]


@pytest.mark.parametrize(("body", "status", "code", "message"), INVALID_BODIES)
async def test_an_invalid_body_gets_a_clear_error(
    server: Server, client_of: ClientOf, body: str, status: int, code: str, message: str
) -> None:
    headers = {"Content-Type": "application/json"}
    data = body.encode("latin-1")
    async with client_of(server).session.post(f"{server.url}/chat_stream", data=data, headers=headers) as response:
        error = await response.json()
        assert (response.status, error["error"]) == (status, code)
        assert message in error["detail"]
        assert set(error) == {"error", "detail"}
        assert "Set-Cookie" not in response.headers
        assert response.headers["Cache-Control"] == "no-store"
    assert server.idle


async def test_unknown_fields_are_ignored_and_null_params_are_defaults(server: Server, client_of: ClientOf) -> None:
    answer = await client_of(server).say("hi", something="else", params={"top_k": None, "unknown": 1})
    assert answer["text"] == "hi "


async def test_other_media_types_are_refused(server: Server, client_of: ClientOf) -> None:
    session = client_of(server).session
    async with session.post(
        f"{server.url}/chat_stream", data=b"user_input=hi", headers={"Content-Type": "text/x"}
    ) as r:
        assert r.status == 415
        assert (await r.json())["error"] == "unsupported_media_type"
    async with session.post(f"{server.url}/clear_context") as response:
        assert response.status == 200  # a POST without a body needs no media type


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_a_413(start: StartServer, client_of: ClientOf, chunked: bool) -> None:
    server = await start(ChatStream(engine=echo, limits=Limits(max_request_bytes=2048)), client_max_size=1 << 30)
    data = json.dumps({"user_input": "x" * 3000}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    body = pieces() if chunked else data
    headers = {"Content-Type": "application/json"}
    async with client_of(server).session.post(f"{server.url}/chat_stream", data=body, headers=headers) as response:
        assert response.status == 413
        assert (await response.json())["error"] == "too_large"


async def test_the_apps_body_limit_gives_the_same_error(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=echo), client_max_size=1000)
    async with client_of(server).post(user_input="x" * 3000) as response:
        assert response.status == 413
        assert (await response.json())["error"] == "too_large"


@pytest.mark.parametrize("data", [b"rubbish", gzip.compress(b'{"user_input": "hi"}')[:15]], ids=["rubbish", "cut off"])
async def test_an_invalid_compressed_body_is_a_400(server: Server, client_of: ClientOf, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST /chat_stream HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(data)}\r\n"
    writer.write(
        head.encode() + b"Content-Type: application/json\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + data
    )
    status_line = await reader.readline()
    writer.transport.abort()
    assert b" 400 " in status_line


async def test_a_compressed_body_is_read(server: Server, client_of: ClientOf) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    data = gzip.compress(b'{"user_input": "hi"}')
    async with client_of(server).session.post(f"{server.url}/chat_stream", data=data, headers=headers) as response:
        assert await response.text() == "hi "


@pytest.mark.parametrize("cookie", [b"\xff\xfe", b"a" * 4000, b"gAAAAA==", b'"', b"\xe3\x81\x82; =;;"])
async def test_any_cookie_gives_a_fresh_session(server: Server, cookie: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    request = post_bytes('{"user_input":"hi"}', headers="Connection: close\r\nCookie: AIOHTTP_SESSION=@\r\n")
    writer.write(request.replace(b"@", cookie))
    answer = await reader.read()
    assert b" 200 OK" in answer.splitlines()[0]
    assert b"Set-Cookie" in answer
    writer.close()
    await writer.wait_closed()


async def test_the_query_of_history_is_validated(server: Server, client_of: ClientOf) -> None:
    async with client_of(server).session.get(f"{server.url}/history", params={"conversation": "a b"}) as response:
        assert response.status == 422
        assert "conversation" in (await response.json())["detail"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["user_input", "regenerate", "conversation", "system", "params", "edit_message_id", "continue", "if_turn"]
PARAMS = sorted(ParamOverrides.model_fields)
SET = st.dictionaries(st.sampled_from(PARAMS), JSON)
BODY = st.dictionaries(st.sampled_from(FIELDS), JSON | SET, max_size=5) | SET


async def test_no_body_causes_a_500(server: Server, client_of: ClientOf) -> None:
    client = client_of(server)
    bodies: list[bytes] = []

    @settings(max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(BODY.map(lambda body: json.dumps(body, ensure_ascii=True).encode()) | st.binary(max_size=60))
    def collect(body: bytes) -> None:
        bodies.append(body)

    collect()
    for path in ("/chat_stream", "/chat_stream/stop", "/clear_context", "/set_generation_params"):
        for body in bodies:
            headers = {"Content-Type": "application/json"}
            async with client.session.post(server.url + path, data=body, headers=headers) as response:
                await response.read()
                assert response.status < 500, body
    assert server.idle
