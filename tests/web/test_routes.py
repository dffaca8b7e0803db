"""The API table: chosen by name, mounted by aiohttp's idiom or by chatstream's."""

from __future__ import annotations

import functools
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import SimpleCookieStorage

from aiochatstream import ChatStream, MemoryStorage
from aiochatstream.web.routes import ENDPOINTS
from tests.helpers import browser, echo, serving

PARTS = [part.__name__ for part in ENDPOINTS["webui_index"].parts.values()]
PATHS = {path.replace(":.+", "") for api in ENDPOINTS.values() for path in (api.path, *api.parts)}


def names(routes: list[web.RouteDef]) -> list[str]:
    found = []
    for route in routes:
        assert isinstance(route.handler, functools.partial)
        found.append(route.handler.func.__name__)
    return found


def mounted(app: web.Application) -> set[str]:
    return {resource.canonical for resource in app.router.resources()}


def test_an_endpoint_has_its_handlers_name_and_a_method_for_apps() -> None:
    """The access check goes by the handler's name."""
    for name, api in ENDPOINTS.items():
        assert api.handler.__name__ == name
        assert callable(getattr(ChatStream, f"handle_{name}_request"))


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
    ("chosen", "says"),
    [
        ({"include": ["chat"]}, "include: 'chat' is no API name; they are chat_stream, stop"),
        ({"exclude": [5]}, "exclude: 5 is no API name"),
        ({"include": "chat_stream"}, "include: must be a list of API names, not 'chat_stream'"),
        ({"include": [], "exclude": []}, "include and exclude: give one of the two"),
        ({"prefix": "a"}, "prefix: must begin with a slash"),
        ({"prefix": "/a/"}, "prefix: must begin with a slash"),
    ],
)
def test_an_invalid_selection_of_routes_is_a_value_error(chosen: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ChatStream(engine=echo).routes(**chosen)


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({"all": True}, PATHS),
        ({"include": ["chat_stream", "clear_context"]}, {"/chat_stream", "/clear_context"}),
        ({"exclude": ["metrics"]}, PATHS - {"/metrics"}),
    ],
)
async def test_append_apis_mounts_the_selected_routes_and_sets_up(options: Any, paths: set[str]) -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    chat_stream.append_middlewares(app)
    chat_stream.append_apis(app, options)
    assert mounted(app) == paths
    async with serving(app) as url, browser(url) as client:
        assert (await client.say("hello"))["text"] == "hello "


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "exactly one of 'include', 'exclude' and 'all', not none"),
        ({"include": [], "all": True}, "exactly one of .* not 'include' and 'all'"),
        ({"all": False}, "'all' must be True, not False"),
        ({"all": "yes"}, "'all' must be True, not 'yes'"),
        ({"include": ["chat"]}, "include: 'chat' is no API name"),
        ({"include": "chat_stream"}, "include: must be a list"),
        ({"exclude": None}, "exclude: must be a list"),
        ({"all": True, "color": 1}, "'color' is none of"),
        ({"all": True, 5: 1}, "5 is none of"),
        ("all", "must be a dict"),
    ],
)
def test_invalid_options_of_append_apis_are_a_value_error_and_mount_nothing(options: Any, says: str) -> None:
    app = web.Application()
    with pytest.raises(ValueError, match=says):
        ChatStream(engine=echo).append_apis(app, options)
    assert mounted(app) == set()
    assert len(app.on_shutdown) == 0


async def test_setup_is_idempotent_for_one_app_and_refused_for_a_second() -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    chat_stream.append_middlewares(app)
    chat_stream.append_apis(app, {"include": ["chat_stream"]})
    once = (list(app.cleanup_ctx), list(app.on_shutdown))
    chat_stream.setup(app)
    chat_stream.append_apis(app, {"include": ["history"]})
    assert (list(app.cleanup_ctx), list(app.on_shutdown)) == once
    other = web.Application()
    for refused in (lambda: chat_stream.setup(other), lambda: chat_stream.append_apis(other, {"all": True})):
        with pytest.raises(RuntimeError, match="set up in another application; make one ChatStream for each"):
            refused()
    assert mounted(other) == set()
    async with serving(app) as url, browser(url) as client:
        assert (await client.say("hello"))["text"] == "hello "
        assert await client.texts() == ["hello", "hello "]


async def test_an_apps_own_routes_have_the_errors_and_checks_of_mounted_ones() -> None:
    app = web.Application()
    allow = ["chat_stream", "clear_context", "stop", "history"]
    roles = {"user": {"apis": {"allow": allow, "auth_method": "nothing"}}}
    chat_stream = ChatStream(engine=echo, client_roles=roles)
    chat_stream.append_middlewares(app)
    chat_stream.setup(app)

    async def clear(request: web.Request) -> web.StreamResponse:
        return await chat_stream.handle_clear_context_request(request)

    app.router.add_post("/api/forget", clear)
    app.router.add_post("/api/talk", chat_stream.handle_chat_stream_request)
    app.router.add_post("/api/halt", chat_stream.handle_stop_request)
    app.router.add_get("/api/said", chat_stream.handle_history_request)
    app.router.add_get("/api/load", chat_stream.handle_get_load_request)
    app.router.add_get("/api/alive", chat_stream.handle_healthz_request)
    app.router.add_get("/api/ready", chat_stream.handle_readyz_request)
    app.router.add_get("/api/figures", chat_stream.handle_metrics_request)
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


async def test_start_queue_worker_is_harmless_called_and_awaited() -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    chat_stream.append_middlewares(app)
    chat_stream.append_apis(app, {"all": True})
    chat_stream.start_queue_worker()
    awaited = []

    async def startup(app: web.Application) -> None:
        await chat_stream.start_queue_worker()
        awaited.append(True)

    app.on_startup.append(startup)
    async with serving(app) as url, browser(url) as client:
        assert (await client.say("hello"))["text"] == "hello "
    assert awaited


async def test_append_middlewares_sets_up_the_given_session_storage() -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    chat_stream.append_middlewares(app, {"session_storage": SimpleCookieStorage(cookie_name="MINE")})
    chat_stream.append_middlewares(app)
    assert len(app.middlewares) == 1
    chat_stream.append_apis(app, {"all": True})
    async with serving(app) as url, browser(url) as client, client.post(user_input="hi") as response:
        assert list(response.cookies) == ["MINE"]


def test_append_middlewares_keeps_an_apps_own_sessions() -> None:
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    before = list(app.middlewares)
    ChatStream(engine=echo).append_middlewares(app, {"session_storage": SimpleCookieStorage()})
    assert list(app.middlewares) == before


@pytest.mark.parametrize(
    ("opts", "says"),
    [
        ({"storage": 1}, "no other key than 'session_storage'"),
        ([], "must be a dict"),
        ({"session_storage": "memory"}, "session_storage: must be a storage of aiohttp-session, not 'memory'"),
    ],
)
def test_invalid_options_of_append_middlewares_are_a_value_error(opts: Any, says: str) -> None:
    app = web.Application()
    with pytest.raises(ValueError, match=says):
        ChatStream(engine=echo).append_middlewares(app, opts)
    assert len(app.middlewares) == 0
