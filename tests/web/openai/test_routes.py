"""Mounting of the API, and errors of unknown paths."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import aiohttp_session
import pytest
from aiohttp import web
from openai import AsyncOpenAI, OpenAI

from aiochatstream import ChatStream, Delta, MemoryStorage
from aiochatstream.engines.upstream import hops
from tests.helpers import DeltaEngine, StartServer, echo, serving
from tests.web.openai.helpers import HI


def app_with_api(prefix: str) -> web.Application:
    app = web.Application()
    ChatStream(engine=echo).setup_openai(app, prefix)
    return app


async def test_the_sync_client_gets_models_answers_and_streams(start: StartServer) -> None:
    server = await start(ChatStream(engine=echo))

    def use_client() -> None:
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            (model,) = client.models.list()
            assert model == client.models.retrieve(model.id)
            answer = client.chat.completions.create(model=model.id, messages=HI)
            (choice,) = answer.choices
            assert (choice.message.role, choice.message.content) == ("assistant", "one two three ")
            assert choice.finish_reason == "stop"
            assert answer.model == model.id
            chunks = list(client.chat.completions.create(model=model.id, messages=HI, stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three "
            text = client.completions.create(model=model.id, prompt="a b", echo=True)
            assert text.choices[0].text == "a ba b "
            with client.responses.stream(model=model.id, input="a b", instructions="Be short.") as stream:
                assert stream.get_final_response().output_text == "a b "

    await asyncio.to_thread(use_client)
    assert server.idle


async def test_an_app_with_only_this_api_needs_no_sessions() -> None:
    app = web.Application()
    ChatStream(engine=echo).setup_openai(app, "/api", model_name="parrot")
    async with serving(app) as url, AsyncOpenAI(base_url=f"{url}/api", api_key="none") as client:
        assert [model.id async for model in client.models.list()] == ["parrot"]
        assert (await client.responses.create(model="parrot", input="hi")).output_text == "hi "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": "v1"}, "prefix: must begin with a slash"),
        ({"prefix": "/v1/"}, "prefix: must begin with a slash and not end with one"),
        ({"prefix": "/{x}"}, "prefix: must begin with a slash and not end with one"),
        ({"model_name": ""}, "model_name: must be a non-empty string"),
        ({"model_name": 5}, "model_name: must be a non-empty string"),
    ],
)
def test_invalid_options_of_setup_openai_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatStream(engine=echo).setup_openai(web.Application(), **options)


def test_two_models_cannot_share_a_prefix() -> None:
    app = app_with_api("/v1")
    ChatStream(engine=echo).setup_openai(app, "/other")
    with pytest.raises(ValueError, match="prefix: must differ for each model"):
        ChatStream(engine=echo).setup_openai(app, "/v1")


async def fetch(url: str, method: str = "GET") -> tuple[int, str, Any]:
    async with aiohttp.request(method, url) as response:
        is_json = response.content_type == "application/json"
        return (
            response.status,
            response.headers.get("Allow", ""),
            await (response.json() if is_json else response.text()),
        )


@pytest.mark.parametrize(("mounted", "prefix"), [("", "/v1"), ("/ai", "/v1"), ("/ai/v1", "")])
async def test_unknown_paths_and_methods_have_errors_in_openais_format(mounted: str, prefix: str) -> None:
    app = app_with_api(prefix)
    if mounted:
        inner, app = app, web.Application()
        app.add_subapp(mounted, inner)
    async with serving(app) as url:
        base = url + mounted + prefix
        for path in ("", "/", "/embeddings", "/chat/completions/"):
            status, _, body = await fetch(base + path)
            assert (status, body["error"]["code"], body["error"]["type"]) == (404, "not_found", "invalid_request_error")
        status, allow, body = await fetch(f"{base}/completions")
        assert (status, allow, body["error"]["code"]) == (405, "POST", "method_not_allowed")
        assert (await fetch(f"{base}/models"))[0] == 200


@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_errors_of_other_routes_are_unchanged(prefix: str) -> None:
    async def missing(request: web.Request) -> web.Response:
        raise web.HTTPNotFound(text="no such file")

    app = app_with_api(prefix)
    app.router.add_get("/v1/files/{name}", missing)
    async with serving(app) as url:
        assert await fetch(f"{url}/v1/files/x") == (404, "", "no such file")
        assert await fetch(f"{url}/v10") == (404, "", "404: Not Found")
        assert (await fetch(f"{url}/", "POST"))[2] == "404: Not Found"


async def test_an_app_with_only_this_api_reports_its_health() -> None:
    app = web.Application()
    chat_stream = ChatStream(engine=echo)
    chat_stream.setup_openai(app, api_keys=["a-key-of-thirty-characters----"])
    async with serving(app) as url:
        assert await fetch(f"{url}/health") == (200, "", {"status": "ready"})
        assert (await fetch(f"{url}/health", "HEAD"))[0] == 200
        assert (await fetch(f"{url}/health", "POST"))[0] == 404
        chat_stream.drain()
        status, _, body = await fetch(f"{url}/health")
        assert (status, body["error"]) == (503, "draining")


async def test_the_health_of_the_application_takes_precedence() -> None:
    async def health(request: web.Request) -> web.Response:
        return web.Response(text="mine")

    async def missing(request: web.Request) -> web.Response:
        raise web.HTTPNotFound(text="no such health")

    for handler, response in ((health, (200, "", "mine")), (missing, (404, "", "no such health"))):
        app = app_with_api("/v1")
        app.router.add_get("/health", handler)
        async with serving(app) as url:
            assert await fetch(f"{url}/health") == response


async def test_a_request_that_passes_a_server_twice_is_refused() -> None:
    """Before it takes a slot, and without a retry by OpenAI's clients."""

    class Front(DeltaEngine):
        server_id = "0123456789abcdef"

    chat_stream = ChatStream(engine=Front(Delta("Hi", finish_reason="stop")))
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app)
    chat_stream.setup_openai(app)
    loop, others = Front.server_id, ", ".join(f"{number:016x}" for number in range(3))
    async with serving(app) as url, aiohttp.ClientSession(url) as session:
        for path, body in (
            ("/v1/chat/completions", {"messages": HI}),
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/responses", {"input": "x"}),
            ("/chat_stream", {"user_input": "x"}),
        ):
            for header, status in ((loop, 508), (others, 508), (others[:34], 200)):
                async with session.post(path, json=body, headers={hops.HEADER: header}) as response:
                    assert response.status == status
                    assert ("loop_detected" in await response.text()) == (status == 508)
                    if path.startswith("/v1") and status == 508:
                        assert response.headers["X-Should-Retry"] == "false"
