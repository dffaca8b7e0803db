"""Errors as responses: the one place where the exception tree becomes HTTP."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from aiochatstream.errors import (
    ChatStreamError,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    TooManyRequests,
    Unauthorized,
)
from aiochatstream.web.auth.access import check_access
from aiochatstream.web.json import json_response
from aiochatstream.web.server import Server
from aiochatstream.web.streaming.disconnects import is_gone

logger = logging.getLogger(__name__)

P = ParamSpec("P")

ServerHandler = Callable[Concatenate[Server, web.Request, P], Awaitable[web.StreamResponse]]

Respond = Callable[[ChatStreamError, int], web.Response]


def error_body(error: ChatStreamError) -> dict[str, Any]:
    """The JSON that tells of ``error``; a refusal has chatstream's keys wherever it happens."""
    body = {"error": error.code, "detail": error.detail}
    if isinstance(error, Unauthorized | Forbidden):
        return {**body, "success": False, "message": type(error).__name__}
    return body


def error_response(
    error: ChatStreamError, overload_status: int = TooManyRequests.status, more: dict[str, Any] | None = None
) -> web.Response:
    """The response that tells of ``error``; ``more`` goes into its body."""
    status = overload_status if isinstance(error, TooManyRequests) else error.status
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return json_response({**(more or {}), **error_body(error)}, status=status, headers=headers)


def _as_chatstream(error: ChatStreamError, overload_status: int) -> web.Response:
    return error_response(error, overload_status, {"success": False, "message": error.detail})


def answers_errors(handler: ServerHandler[P]) -> ServerHandler[P]:
    """Let only those call ``handler`` who may call the API of its name, and answer what it raises as JSON.

    An unexpected error is logged with an id that the client gets, too.
    """
    return answers_all_errors(_checks_access(handler))


def answers_errors_as_chatstream(handler: ServerHandler[P]) -> ServerHandler[P]:
    """The same, with the keys that chatstream's clients look for beside ours."""
    return answers_all_errors(_checks_access(handler), _as_chatstream)


def _checks_access(handler: ServerHandler[P]) -> ServerHandler[P]:
    @functools.wraps(handler)
    async def checked(server: Server, request: web.Request, /, *args: P.args, **kwargs: P.kwargs) -> web.StreamResponse:
        await check_access(server, request, api)
        return await handler(server, request, *args, **kwargs)

    api: str = checked.__name__
    return checked


def answers_all_errors(handler: ServerHandler[P], respond: Respond = error_response) -> ServerHandler[P]:
    """The same as :func:`answers_errors` for one that checks itself who may call it.

    :param respond: makes the response to an error, given it and the status of a full queue.
    """

    @functools.wraps(handler)
    async def guarded(server: Server, request: web.Request, /, *args: P.args, **kwargs: P.kwargs) -> web.StreamResponse:
        server.active_requests.add(request)
        try:
            response = await handler(server, request, *args, **kwargs)
        except ChatStreamError as error:
            if error.status == ChatStreamError.status:
                logger.error("%s %s: %s", request.method, request.path, error.detail)
            response = respond(error, server.limits.overload_status)
        except web.HTTPException:
            raise
        except Exception as error:
            if isinstance(error, ConnectionError) and is_gone(request):
                return web.Response(status=499)  # the client left; nobody reads this
            request_id = uuid.uuid4().hex
            logger.exception("%s %s failed (request %s)", request.method, request.path, request_id)
            refusal = ChatStreamError(f"Something went wrong here. (request {request_id})")
            response = respond(refusal, server.limits.overload_status)
        server.active_requests.expect_sent(request, response)
        return response

    return guarded


def errors_as_json(
    respond: Respond = error_response, concerns: Callable[[web.Request], bool] = lambda request: True
) -> Middleware:
    """Unknown paths and methods are answered as JSON, too.

    :param concerns: whether the path of a request is one of those that are; all are by default, for an app that is
        nothing but ChatStream.
    """

    @web.middleware
    async def json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as refused:
            if request.match_info.http_exception is None or not concerns(request):
                raise  # what a handler has said itself, or of another's path
            if isinstance(refused, web.HTTPNotFound):
                return respond(NotFound(f"There is nothing at {request.path}."), TooManyRequests.status)
            allowed = ", ".join(sorted(refused.allowed_methods))
            error = MethodNotAllowed(f"{request.path} takes {allowed}, not {request.method}.")
            response = respond(error, TooManyRequests.status)
            response.headers["Allow"] = allowed
            return response

    return json_errors
