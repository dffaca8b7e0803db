"""Tests of the table of endpoints: selection by name, and mounting with add_routes or add_endpoints."""

from __future__ import annotations

import functools
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web

from aiochatstream import ChatStream, MemoryStorage
from aiochatstream.web.routes import ENDPOINTS
from tests.helpers import browser, echo, serving

PARTS = [part.__name__ for part in ENDPOINTS["webui_index"].parts.values()]
PATHS = {path.replace(":.+", "") for endpoint in ENDPOINTS.values() for path in (endpoint.path, *endpoint.parts)}


def names(routes: list[web.RouteDef]) -> list[str]:
    handlers = []
    for route in routes:
        assert isinstance(route.handler, functools.partial)
        handlers.append(route.handler.func.__name__)
    return handlers


def mounted_paths(app: web.Application) -> set[str]:
    return {resource.canonical for resource in app.router.resources()}


def test_an_endpoint_has_the_name_of_its_handler_and_a_handler_for_own_routes() -> None:
    # the access check uses the name of the handler
    chat_stream = ChatStream(engine=echo)
    for name, endpoint in ENDPOINTS.items():
        assert endpoint.handler.__name__ == name
        assert chat_stream.handler(name).func is endpoint.handler


def test_an_unknown_endpoint_has_no_handler() -> None:
    with pytest.raises(ValueError, match=r"^unknown endpoint 'chat'; choose from chat_stream, stop, "):
        ChatStream(engine=echo).handler("chat")


def test_routes_are_all_or_the_selected_ones() -> None:
    chat_stream = ChatStream(engine=echo)
    assert list(dict.fromkeys(name for name in names(chat_stream.routes()) if name not in PARTS)) == list(ENDPOINTS)
    assert names(chat_stream.routes(include=["get_load", "chat_stream"])) == ["chat_stream", "get_load"]
    assert names(chat_stream.routes(exclude=("metrics",))) == [
        name for name in names(chat_stream.routes()) if name != "metrics"
    ]
    assert names(chat_stream.routes(include=["webui_index"])) == ["webui_index", *PARTS]
    assert names(chat_stream.routes(include=[])) == []
    (route,) = chat_stream.routes(include=["stop"], prefix="/support")
    assert (route.method, route.path) == ("POST", "/support/chat_stream/stop")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"include": ["chat"]}, "include: unknown endpoint 'chat'; choose from chat_stream, stop"),
        ({"exclude": [5]}, "exclude: unknown endpoint 5; choose from"),
        ({"include": "chat_stream"}, "include: must be a list of endpoint names, not 'chat_stream'"),
        ({"include": [], "exclude": []}, "include: cannot be used together with exclude"),
        ({"prefix": "a"}, "prefix: must begin with a slash"),
        ({"prefix": "/a/"}, "prefix: must begin with a slash"),
    ],
)
def test_an_invalid_selection_of_routes_is_a_value_error(chosen: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatStream(engine=echo).routes(**chosen)


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({}, PATHS),
        ({"include": ["chat_stream", "clear_context"]}, {"/chat_stream", "/clear_context"}),
        ({"exclude": ["metrics"]}, PATHS - {"/metrics"}),
        ({"include": ["stop"], "prefix": "/support"}, {"/support/chat_stream/stop"}),
    ],
)
async def test_add_endpoints_mounts_the_selected_ones_and_sets_up(options: Any, paths: set[str]) -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app, **options)
    assert mounted_paths(app) == paths
    async with serving(app):
        assert chat_stream.state == "ready"


def test_add_endpoints_with_an_unknown_name_changes_nothing() -> None:
    app = web.Application()
    with pytest.raises(ValueError, match="include: unknown endpoint 'chat'"):
        ChatStream(engine=echo).add_endpoints(app, include=["chat"])
    assert mounted_paths(app) == set()
    assert len(app.on_shutdown) == 0


async def test_setup_is_idempotent_for_one_app_and_refused_for_a_second() -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app, include=["chat_stream"])
    once = (list(app.cleanup_ctx), list(app.on_shutdown))
    chat_stream.setup(app)
    chat_stream.add_endpoints(app, include=["history"])
    assert (list(app.cleanup_ctx), list(app.on_shutdown)) == once
    other = web.Application()
    message = "set up in another application; make one ChatStream for each"
    with pytest.raises(RuntimeError, match=message):
        chat_stream.setup(other)
    with pytest.raises(RuntimeError, match=message):
        chat_stream.add_endpoints(other)
    assert mounted_paths(other) == set()
    async with serving(app) as url, browser(url) as client:
        assert (await client.say("hello"))["text"] == "hello "
        assert await client.texts() == ["hello", "hello "]


async def test_an_apps_own_routes_have_the_errors_and_checks_of_mounted_ones() -> None:
    app = web.Application()
    allow = ["chat_stream", "clear_context", "stop", "history"]
    roles = {"user": {"apis": {"allow": allow, "auth_method": "nothing"}}}
    chat_stream = ChatStream(engine=echo, client_roles=roles)
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.setup(app)

    async def clear(request: web.Request) -> web.StreamResponse:
        return await chat_stream.handler("clear_context")(request)

    app.router.add_post("/api/forget", clear)
    app.router.add_post("/api/talk", chat_stream.handle_chat_stream_request)
    app.router.add_post("/api/halt", chat_stream.handler("stop"))
    app.router.add_get("/api/said", chat_stream.handler("history"))
    app.router.add_get("/api/load", chat_stream.handler("get_load"))
    app.router.add_get("/api/alive", chat_stream.handler("healthz"))
    app.router.add_get("/api/ready", chat_stream.handler("readyz"))
    app.router.add_get("/api/figures", chat_stream.handler("metrics"))
    async with serving(app) as url, browser(url) as client:
        for path in ("/api/alive", "/api/ready", "/api/figures", "/api/said"):
            async with client.session.get(url + path) as response:
                assert response.status == 200
        async with client.post("/api/talk", user_input="hi") as response:
            assert await response.text() == "hi "
        async with client.post("/api/halt") as response:
            assert (response.status, (await response.json())["error"]) == (404, "not_running_here")
        async with client.post("/api/forget", conversation="a/b") as response:
            assert response.status == 422
            assert (await response.json())["success"] is False
        async with client.post("/api/forget") as response:
            assert (await response.json())["success"] is True
        async with client.session.get(f"{url}/api/load") as response:
            assert (response.status, (await response.json())["detail"]) == (403, "Denied on role layer.")
        foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        for path in ("/api/talk", "/api/forget", "/api/halt"):
            async with client.session.post(url + path, json={"user_input": "hi"}, headers=foreign) as response:
                assert (response.status, (await response.json())["error"]) == (403, "forbidden")
