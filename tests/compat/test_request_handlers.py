"""Request handlers of applications."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from aiochatstream.compat import AbstractRequestHandler, ChatStream, SimpleSessionRequestHandler
from aiochatstream.errors import Forbidden
from tests.helpers import ClientOf, StartServer, browser, echo, role_of, serving, until


class WorkingHours(SimpleSessionRequestHandler):
    """A handler that refuses requests outside working hours."""

    def __init__(self) -> None:
        self.is_open = True
        self.paths: list[str] = []

    async def process_request(self, request: web.Request, request_body: Any, callback: Any) -> web.StreamResponse:
        self.paths.append(request.path)
        if not self.is_open:
            raise Forbidden("We are closed.")
        return await super().process_request(request, request_body, callback)


async def test_a_handler_answers_or_refuses_requests(start: StartServer, client_of: ClientOf) -> None:
    handler = WorkingHours()
    client = client_of(await start(ChatStream(engine=echo, request_handler=handler)))
    async with client.post(user_input="hi") as response:
        assert await response.text() == "hi <::EOS::>"
    assert await client.texts() == ["hi", "hi "]
    handler.is_open = False
    async with client.post(user_input="hi") as response:
        assert (response.status, (await response.json())["detail"]) == (403, "We are closed.")
    assert handler.paths == ["/chat_stream"] * 2
    assert handler.get_request_handler_type() == "http_session"


async def test_routes_of_the_application_use_the_handler_and_the_callback() -> None:
    app, handler, messages = web.Application(), WorkingHours(), []
    chat_stream = ChatStream(engine=echo, request_handler=handler)

    async def talk(request: web.Request) -> web.StreamResponse:
        return await chat_stream.handle_chat_stream_request(
            request, {"user_input": "from the app"}, lambda _, message: messages.append(message)
        )

    chat_stream.append_middlewares(app)
    chat_stream.setup(app)
    app.router.add_post("/talk", talk)
    app.router.add_post("/handler", chat_stream.handler("chat_stream"))
    app.router.add_get("/history", chat_stream.handler("history"))
    async with serving(app) as url, browser(url) as client:
        async with client.post("/talk") as response:
            assert (await response.text()).endswith("from the app <::EOS::>")
        async with client.post("/handler", user_input="hi") as response:
            assert await response.text() == "hi <::EOS::>"
        assert await client.texts() == ["from the app", "from the app ", "hi", "hi "]
        await until(lambda: messages == ["success"])
    assert handler.paths == ["/talk", "/handler"]


async def test_roles_apply_before_the_handler(start: StartServer, client_of: ClientOf) -> None:
    handler = WorkingHours()
    roles = {"user": role_of("nothing", allow=["history"], use_session=True)}
    client = client_of(await start(ChatStream(engine=echo, request_handler=handler, client_roles=roles)))
    async with client.post(user_input="hi") as response:
        assert response.status == 403
    assert handler.paths == []


def test_a_handler_must_be_an_object_of_the_class() -> None:
    with pytest.raises(TypeError, match=r"^request_handler: must be an AbstractRequestHandler or None, not 5"):
        ChatStream(engine=echo, request_handler=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="abstract"):
        AbstractRequestHandler()  # type: ignore[abstract]
