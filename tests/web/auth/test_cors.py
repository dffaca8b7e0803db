"""Tests of CORS: only pages of allowed origins may send unsafe requests, and read the responses."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import aiohttp_session
import pytest
from aiohttp import web

from aiochatstream import ChatStream, MemoryStorage
from aiochatstream.web.auth.origins import normalize_origins
from aiochatstream.web.endpoint import Endpoint
from aiochatstream.web.routes import ENDPOINTS
from tests.helpers import Client, browser, echo, role_of, serving

FRIEND = "https://app.example"
EXPOSED = {"X-ChatStream-Last-Generated-Message-Id", "X-ChatStream-API-DevTool-Enabled", "Retry-After"}


@asynccontextmanager
async def friends_server(
    *, storage: MemoryStorage | None = None, sub_app: bool = False, **options: Any
) -> AsyncIterator[Client]:
    app = inner = web.Application()
    chat_stream = ChatStream(**{"engine": echo, "allowed_hosts": ["*"], "allowed_origins": [FRIEND], **options})
    aiohttp_session.setup(app, MemoryStorage(samesite="None", secure=True) if storage is None else storage)
    if sub_app:
        inner = web.Application()
    chat_stream.add_endpoints(inner)
    if sub_app:
        app.add_subapp("/chat", inner)
    async with serving(app) as url, browser(url + "/chat" * sub_app) as client:
        yield client


UNSAFE_ENDPOINTS = [
    ("POST", "/chat_stream"),
    ("POST", "/chat_stream/stop"),
    ("POST", "/clear_context"),
    ("DELETE", "/history/x"),
    ("POST", "/import"),
    ("POST", "/commit"),
    ("POST", "/set_feedback"),
    ("POST", "/set_generation_params"),
]


def path_of(endpoint: Endpoint) -> str:
    path: str = endpoint.path.format(message_id="x")
    return path


def test_unsafe_endpoints_lists_all_endpoints_with_unsafe_methods() -> None:
    methods = [(endpoint.route("/", echo).method, path_of(endpoint)) for endpoint in ENDPOINTS.values()]
    assert [(method, path) for method, path in methods if method != "GET"] == UNSAFE_ENDPOINTS


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, True),  # not a browser
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site", "Origin": "https://sibling.example"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "null"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": FRIEND}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": FRIEND, "Host": "app.example"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://here.example", "Host": "here.example"}, False),
        ({"Origin": "http://here.example:8080", "Host": "here.example:8080"}, True),
        ({"Origin": "https://here.example", "Host": "here.example"}, True),  # TLS ends at a proxy
        ({"Origin": "https://here.example", "Host": "HERE.example:443"}, True),
        ({"Origin": "http://[::1]:8080", "Host": "[::1]:8080"}, True),
        ({"Origin": "http://here.example:8081", "Host": "here.example:8080"}, False),
        ({"Origin": "https://evil.example", "Host": "here.example"}, False),
        ({"Origin": "https://here.example.evil.example", "Host": "here.example"}, False),
        ({"Origin": "null", "Host": "null"}, False),
        ({"Origin": "https://[", "Host": "["}, False),
        ({"Origin": FRIEND, "Host": "here.example"}, True),
        ({"Origin": FRIEND + ".evil.example", "Host": "here.example"}, False),
    ],
)
async def test_only_pages_of_this_host_and_of_allowed_origins_may_use_unsafe_methods(
    headers: dict[str, str], passes: bool
) -> None:
    async with friends_server() as client:
        for method, path in UNSAFE_ENDPOINTS:
            body = {"user_input": "hi"}
            async with client.session.request(method, client.url + path, json=body, headers=headers) as response:
                if passes:
                    assert response.status in (200, 404, 422)
                else:
                    refusal = await response.json()
                    assert response.status == 403
                    assert (refusal["error"], refusal["success"]) == ("forbidden", False)
                    assert refusal["detail"].startswith("Cross-site request from ")
                    assert "proxy_set_header Host $http_host" in refusal["detail"]
                    assert "allowed_origins" in refusal["detail"]
                    assert "Set-Cookie" not in response.headers
        async with client.session.get(f"{client.url}/history", headers=headers) as response:
            assert response.status == 200  # browsers protect the responses to safe methods


@pytest.mark.parametrize("sub_app", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS)
async def test_a_preflight_of_each_endpoint_allows_the_documented_headers(endpoint: Endpoint, sub_app: bool) -> None:
    async with friends_server(sub_app=sub_app) as client:
        preflight = {
            "Origin": FRIEND,
            "Access-Control-Request-Method": endpoint.route("/", echo).method,
            "Access-Control-Request-Headers": (
                "content-type, x-chatstream-wire, x-fastsession-skip, x-chatstream-auth-header"
            ),
        }
        async with client.session.options(client.url + path_of(endpoint), headers=preflight) as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == FRIEND
            assert response.headers["Access-Control-Allow-Credentials"] == "true"
            assert response.headers["Access-Control-Allow-Methods"] == preflight["Access-Control-Request-Method"]
            allowed = response.headers["Access-Control-Allow-Headers"].lower().split(",")
            assert set(allowed) == set(preflight["Access-Control-Request-Headers"].split(", "))
        for change in (
            {"Origin": "https://evil.example"},
            {"Access-Control-Request-Method": "PATCH"},
            {"Access-Control-Request-Headers": "x-else"},
        ):
            async with client.session.options(
                client.url + path_of(endpoint), headers={**preflight, **change}
            ) as response:
                assert response.status == 403
                assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("sub_app", [False, True])
@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
async def test_an_allowed_page_may_read_answers_and_errors(accept: str, sub_app: bool) -> None:
    async with friends_server(
        sub_app=sub_app, client_roles={"user": role_of("nothing", allow=["chat_stream"])}
    ) as client:

        async def post(
            body: dict[str, str], path: str = "/chat_stream", origin: str = FRIEND
        ) -> aiohttp.ClientResponse:
            headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site", "Accept": accept}
            return await client.session.post(client.url + path, json=body, headers=headers)

        for body, path, status in (
            ({"user_input": "hi"}, "/chat_stream", 200),
            ({}, "/chat_stream", 422),
            ({}, "/clear_context", 403),
        ):
            async with await post(body, path) as response:
                await response.read()
                assert response.status == status
                assert response.headers["Access-Control-Allow-Origin"] == FRIEND
                assert response.headers["Access-Control-Allow-Credentials"] == "true"
                assert set(response.headers["Access-Control-Expose-Headers"].split(",")) == EXPOSED
        async with await post({"user_input": "hi"}, origin="https://evil.example") as response:
            assert response.status == 403
            assert "Access-Control-Allow-Origin" not in response.headers
        async with client.session.get(f"{client.url}/healthz", headers={"Origin": FRIEND}) as response:
            assert response.headers["Access-Control-Allow-Origin"] == FRIEND


async def test_without_allowed_origins_there_is_no_cors() -> None:
    async with friends_server(allowed_origins=[]) as client:
        preflight = {"Origin": FRIEND, "Access-Control-Request-Method": "POST"}
        async with client.session.options(f"{client.url}/chat_stream", headers=preflight) as response:
            assert response.status == 405
        async with client.session.get(f"{client.url}/healthz", headers={"Origin": FRIEND}) as response:
            assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("sub_app", [False, True])
@pytest.mark.parametrize(
    ("cookie", "warns"),
    [
        ({}, True),
        ({"samesite": "None"}, True),
        ({"secure": True}, True),
        ({"samesite": None, "secure": True}, True),
        ({"samesite": "None", "secure": True}, False),
    ],
)
async def test_a_cookie_that_browsers_do_not_send_cross_site_logs_a_warning(
    cookie: dict[str, Any], warns: bool, sub_app: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with friends_server(storage=MemoryStorage(**cookie), sub_app=sub_app) as client:
        if sub_app:  # the sessions of a parent are detected at the first request
            await client.texts()
            await client.texts()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warns
    if warns:
        assert "AIOHTTP_SESSION is not SameSite=None and Secure" in messages[0]


@pytest.mark.parametrize(
    ("origin", "normal"),
    [
        ("https://app.example", "https://app.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("HTTPS://App.Example:443", "https://app.example"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://日本.jp", "https://xn--wgv71a.jp"),
    ],
)
def test_origins_are_normalized_to_the_form_of_browsers(origin: str, normal: str) -> None:
    assert normalize_origins([origin]) == {normal}


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        (["*"], r"allowed_origins: must list each origin, not '\*'"),
        (FRIEND, "allowed_origins: must be a list"),
        (None, "allowed_origins: must be a list"),
        *(
            ([origin], "allowed_origins: must be scheme://host or scheme://host:port, without a path, not ")
            for origin in (
                "app.example",
                "https://",
                "https://app.example/",
                "https://app.example/chat",
                "https://app.example?x",
                "https://me@app.example",
                "https://app.example:99999",
                "https://app.example ",
                "null",
                "",
                5,
            )
        ),
    ],
)
def test_an_invalid_origin_is_a_value_error(origins: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatStream(engine=echo, allowed_origins=origins)
