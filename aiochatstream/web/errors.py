"""Conversion of exceptions to HTTP responses."""

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
    """Return the JSON body for ``error``. An access error also has the keys of chatstream."""
    body = {"error": error.code, "detail": error.detail}
    if isinstance(error, Unauthorized | Forbidden):
        return {**body, "success": False, "message": type(error).__name__}
    return body


def error_response(
    error: ChatStreamError, overload_status: int = TooManyRequests.status, more: dict[str, Any] | None = None
) -> web.Response:
    """Return the response for ``error``, with the keys ``more`` in its body."""
    status = overload_status if isinstance(error, TooManyRequests) else error.status
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return json_response({**(more or {}), **error_body(error)}, status=status, headers=headers)


def _as_chatstream(error: ChatStreamError, overload_status: int) -> web.Response:
    return error_response(error, overload_status, {"success": False, "message": error.detail})


def json_endpoint(handler: ServerHandler[P]) -> ServerHandler[P]:
    """Check that the client may call the endpoint with the handler's name, and respond to errors as JSON.

    An unexpected error is logged with an id that the response also contains.
    """
    return handle_errors(_check_role(handler))


def chatstream_endpoint(handler: ServerHandler[P]) -> ServerHandler[P]:
    """Like :func:`json_endpoint`, with additional keys in errors for chatstream's clients."""
    return handle_errors(_check_role(handler), _as_chatstream)


def _check_role(handler: ServerHandler[P]) -> ServerHandler[P]:
    @functools.wraps(handler)
    async def checked(server: Server, request: web.Request, /, *args: P.args, **kwargs: P.kwargs) -> web.StreamResponse:
        await check_access(server, request, endpoint)
        return await handler(server, request, *args, **kwargs)

    endpoint: str = checked.__name__
    return checked


def handle_errors(handler: ServerHandler[P], respond: Respond = error_response) -> ServerHandler[P]:
    """Respond to errors like :func:`json_endpoint`, without an access check.

    :param respond: function from an error and the status of a full queue to the response.
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
                return web.Response(status=499)  # not sent: the client has disconnected
            request_id = uuid.uuid4().hex
            logger.exception("%s %s failed (request %s)", request.method, request.path, request_id)
            internal = ChatStreamError(f"Internal server error. (request {request_id})")
            response = respond(internal, server.limits.overload_status)
        server.active_requests.watch_response(request, response)
        return response

    return guarded


def json_error_middleware(
    respond: Respond = error_response, applies_to: Callable[[web.Request], bool] = lambda request: True
) -> Middleware:
    """Return a middleware that responds to unknown paths and methods as JSON.

    :param applies_to: predicate that selects requests by their path; by default all, for an app that serves only
        ChatStream.
    """

    @web.middleware
    async def json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as routing_error:
            if request.match_info.http_exception is None or not applies_to(request):
                raise  # raised by a handler, or for another API's path
            if isinstance(routing_error, web.HTTPNotFound):
                return respond(NotFound(f"There is nothing at {request.path}."), TooManyRequests.status)
            allowed = ", ".join(sorted(routing_error.allowed_methods))
            error = MethodNotAllowed(f"{request.path} accepts {allowed}, not {request.method}.")
            response = respond(error, TooManyRequests.status)
            response.headers["Allow"] = allowed
            return response

    return json_errors
