"""Where the API is mounted, and what is answered below its prefix where there is nothing."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aiochatstream import ChatStream
from tests.helpers import echo, serving


def app_with_the_api(prefix: str) -> web.Application:
    app = web.Application()
    ChatStream(engine=echo).setup_openai(app, prefix)
    return app


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prefix": "v1"}, "prefix: must begin with a slash"),
        ({"prefix": "/v1/"}, "prefix: must begin with a slash and not end with one"),
        ({"prefix": "/{x}"}, "prefix: must begin with a slash and not end with one"),
        ({"model_name": ""}, "model_name: must be a string that is not empty"),
        ({"model_name": 5}, "model_name: must be a string that is not empty"),
    ],
)
def test_what_it_cannot_be_mounted_as_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ChatStream(engine=echo).setup_openai(web.Application(), **options)


def test_two_models_do_not_share_a_prefix() -> None:
    app = app_with_the_api("/v1")
    ChatStream(engine=echo).setup_openai(app, "/other")
    with pytest.raises(ValueError, match="prefix: /v1/models is there already"):
        ChatStream(engine=echo).setup_openai(app, "/v1")


async def ask(url: str, method: str = "GET") -> tuple[int, str, Any]:
    async with aiohttp.request(method, url) as response:
        is_json = response.content_type == "application/json"
        return (
            response.status,
            response.headers.get("Allow", ""),
            await (response.json() if is_json else response.text()),
        )


@pytest.mark.parametrize(("mounted", "prefix"), [("", "/v1"), ("/ai", "/v1"), ("/ai/v1", "")])
async def test_unknown_paths_and_methods_are_refused_in_openais_shape(mounted: str, prefix: str) -> None:
    app = app_with_the_api(prefix)
    if mounted:
        inner, app = app, web.Application()
        app.add_subapp(mounted, inner)
    async with serving(app) as url:
        base = url + mounted + prefix
        for path in ("", "/", "/embeddings", "/chat/completions/"):
            status, _, body = await ask(base + path)
            assert (status, body["error"]["code"], body["error"]["type"]) == (404, "not_found", "invalid_request_error")
        status, allowed, body = await ask(f"{base}/completions")
        assert (status, allowed, body["error"]["code"]) == (405, "POST", "method_not_allowed")
        assert (await ask(f"{base}/models"))[0] == 200


@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_what_else_the_application_refuses_stays_its_own(prefix: str) -> None:
    async def missing(request: web.Request) -> web.Response:
        raise web.HTTPNotFound(text="no such file")

    app = app_with_the_api(prefix)
    app.router.add_get("/v1/files/{name}", missing)
    async with serving(app) as url:
        assert await ask(f"{url}/v1/files/x") == (404, "", "no such file")
        assert await ask(f"{url}/v10") == (404, "", "404: Not Found")
        assert (await ask(f"{url}/", "POST"))[2] == "404: Not Found"
