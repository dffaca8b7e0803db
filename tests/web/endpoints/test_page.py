"""Tests of serving the chat page: files, headers, the configuration of each role, and ``web_ui_params``."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import aiohttp
import aiohttp_session
import pytest
from aiohttp import web

from aiochatstream import ChatStream, GenerationParams, MemoryStorage
from aiochatstream.web.page_files import FOLDER, PageFiles
from tests.helpers import browser, echo, role_of, running_server, serving


class Links(HTMLParser):
    """A parser for the URLs that a page loads, and its inline scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.urls += [
            attributes[name] for name in ("src", "href") if name in attributes and not attributes[name].startswith("#")
        ]
        self.inline += [name for name in attributes if name.startswith("on") or name == "style"]
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style") and data.strip():
            self.inline.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


async def test_the_index_is_revalidated() -> None:
    async with running_server(ChatStream(engine=echo)) as server, aiohttp.ClientSession() as session:
        async with session.get(server.url) as response:
            assert (response.status, response.content_type) == (200, "text/html")
            assert response.headers["Cache-Control"] == "no-cache"
            assert "Set-Cookie" not in response.headers
            tag = response.headers["ETag"]
            assert '<script type="module"' in await response.text()
        async with session.get(server.url, headers={"If-None-Match": tag}) as response:
            assert (response.status, await response.read()) == (304, b"")
            assert response.headers["ETag"] == tag
        async with session.get(server.url, headers={"If-None-Match": '"another"'}) as response:
            assert response.status == 200


async def test_the_policy_allows_only_files_of_the_page() -> None:
    async with (
        running_server(ChatStream(engine=echo)) as server,
        aiohttp.ClientSession() as session,
        session.get(server.url) as response,
    ):
        headers, links = response.headers, Links(await response.text())
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "font-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "dompurify",
    }
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-DNS-Prefetch-Control"] == "off", "a host's name can carry what was said"
    assert links.inline == []
    assert links.urls
    assert all(re.fullmatch(r"page/[0-9a-f]{16}/[a-z0-9/.]+", url) for url in links.urls), "relative, and hashed"


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_every_file_is_served_unchanged_and_cacheable(encoding: str) -> None:
    files = PageFiles.read()
    async with running_server(ChatStream(engine=echo)) as server, aiohttp.ClientSession() as session:
        for name in files.files:
            url = f"{server.url}/page/{files.version}/{name}"
            async with session.get(url, headers={"Accept-Encoding": encoding}) as response:
                assert response.status == 200
                assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Vary"] == "Accept-Encoding"
                assert response.headers.get("Content-Encoding", "identity") == encoding
                assert await response.read() == (FOLDER / name).read_bytes()


async def test_other_versions_and_other_files_are_not_found() -> None:
    version = PageFiles.read().version
    async with running_server(ChatStream(engine=echo)) as server, aiohttp.ClientSession() as session:
        for path in (
            f"/page/{'0' * 16}/js/main.js",
            f"/page/{version}/nothing.js",
            f"/page/{version}/index.html",
            f"/page/{version}/vendor/SHA256SUMS",
            f"/page/{version}/..%2Fchat.py",
            f"/page/{version}/%2e%2e/%2e%2e/setup.cfg",
        ):
            async with session.get(server.url + path) as response:
                assert response.status == 404, path


@pytest.mark.parametrize("how", ["prefix", "sub-app"])
async def test_every_link_of_the_page_works_under_a_prefix(how: str) -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    aiohttp_session.setup(app, MemoryStorage())
    if how == "prefix":
        app.add_routes(chat_stream.routes(prefix="/support"))
        chat_stream.setup(app)
    else:
        inner = web.Application()
        inner.add_routes(chat_stream.routes())
        chat_stream.setup(inner)
        app.add_subapp("/support", inner)
    async with serving(app) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/support/") as response:
            links = Links(await response.text()).urls
        for link in (*links, "ui_config"):
            async with session.get(f"{url}/support/{link}") as response:
                assert response.status == 200, link


async def test_ui_config_contains_the_rights_of_the_role() -> None:
    roles = {
        "guest": role_of("nothing", allow=["chat_stream", "webui_index"]),
        "developer": role_of("ui_pass_phrase", "open sesame", enable_dev_tool=True),
    }
    chat_stream = ChatStream(engine=echo, client_roles=roles, allow_system_prompt=True)
    async with running_server(chat_stream) as server, browser(server.url) as client:

        async def rights() -> tuple[object, ...]:
            async with client.session.get(f"{server.url}/ui_config") as response:
                assert response.headers["Cache-Control"] == "no-store"
                config = await response.json()
                return tuple(config[name] for name in ("role", "allow", "dev_tool", "system_prompt"))

        assert await rights() == ("guest", ["chat_stream", "webui_index"], False, True)
        await client.say("open sesame")
        assert await rights() == ("developer", "all", True, True)


async def test_ui_config_contains_the_thinking_levels_when_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    chat_stream = ChatStream(engine=echo, params=GenerationParams(thinking="low"))
    async with running_server(chat_stream) as server, aiohttp.ClientSession() as session:

        async def thinking() -> tuple[object, object]:
            async with session.get(f"{server.url}/ui_config") as response:
                config = await response.json()
            return config["thinking"], config["thinking_levels"]

        assert await thinking() == ("low", [])
        monkeypatch.setattr(ChatStream, "thinking_levels", ("off", "low"))
        assert await thinking() == ("low", ["off", "low"])
        chat_stream.state = "starting"
        assert await thinking() == ("low", None)
        chat_stream.state = "ready"


async def test_the_page_is_a_403_for_roles_without_it() -> None:
    roles = {"guest": role_of("nothing", allow=["chat_stream"])}
    chat_stream = ChatStream(engine=echo, client_roles=roles)
    async with running_server(chat_stream) as server, aiohttp.ClientSession() as session:
        for path in ("/", "/ui_config"):
            async with session.get(server.url + path) as response:
                assert (response.status, (await response.json())["error"]) == (403, "forbidden")


WEB_UI_PARAMS = {
    "title": {"en": "Help desk", "ja": "ヘルプデスク"},
    "welcome": "How can we help?",
    "avatar": "🐳",
    "accent": "#a01f5c",
    "examples": ["Where is my parcel?"],
    "theme": "dark",
    "locale": "ja",
    "frame_ancestors": ["https://app.example", "'self'"],
}


async def test_ui_config_contains_the_configured_texts_and_colours() -> None:
    app = web.Application()
    chat_stream = ChatStream(engine=echo, web_ui_params=WEB_UI_PARAMS)
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app)
    async with serving(app) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/ui_config") as response:
            config = await response.json()
        async with session.get(url) as response:
            policy = response.headers["Content-Security-Policy"]
    assert {name: config[name] for name in WEB_UI_PARAMS if name in config} == {
        name: value for name, value in WEB_UI_PARAMS.items() if name != "frame_ancestors"
    }
    assert policy.endswith("frame-ancestors https://app.example 'self'")


async def test_the_page_can_be_excluded() -> None:
    app, chat_stream = web.Application(), ChatStream(engine=echo)
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app, exclude=["webui_index"])
    async with serving(app) as url, aiohttp.ClientSession() as session:
        for path in ("/", "/ui_config"):
            async with session.get(url + path) as response:
                assert response.status == 404
