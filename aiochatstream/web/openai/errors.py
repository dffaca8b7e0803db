"""Errors in the format of OpenAI's API."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Middleware

from aiochatstream.errors import ChatStreamError, InvalidValue, LoadFailed, LoopDetected, TooManyRequests, Unauthorized
from aiochatstream.web.errors import P, ServerHandler, handle_errors, json_error_middleware
from aiochatstream.web.json import json_response
from aiochatstream.web.openai.response_models import OpenAIErrorBody

FIELD = re.compile(r"([a-z][a-z_0-9]*(?:\.[a-z_0-9]+)*): ")
"""Beginning of an error about a field."""

EXPOSED_HEADERS = ("X-Request-Id", "Retry-After", "Retry-After-Ms", "X-Should-Retry")
"""Headers that pages of allowed origins may read."""


def error_body(error: ChatStreamError) -> OpenAIErrorBody:
    """Return the JSON of ``error``."""
    message, param = error.detail, None
    if error.status < 500 and (match := FIELD.match(message)):
        param = match[1]
    if isinstance(error, TooManyRequests):
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": error.code}}


def rename_field(error: ChatStreamError, names: Mapping[str, str]) -> None:
    """Replace the field's name at the beginning of ``error``; ``names`` has request names by the engine's names."""
    if match := FIELD.match(error.detail):
        error.detail = f"{names.get(match[1], match[1])}: {error.detail[match.end() :]}"


def error_response(error: ChatStreamError, overload_status: int) -> web.Response:
    """Return the response for ``error``, with the headers that control the retries of clients.

    :param overload_status: status if the queue is full.
    """
    status = error.status
    headers = {"X-Request-Id": f"req_{uuid.uuid4().hex}"}
    if isinstance(error, InvalidValue):
        status = 400
    elif isinstance(error, TooManyRequests):
        status = overload_status
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, LoadFailed | LoopDetected):
        headers["X-Should-Retry"] = "false"  # OpenAI's clients would retry for minutes
    if error.retry_after is not None:
        headers |= {"Retry-After": str(error.retry_after), "Retry-After-Ms": str(1000 * error.retry_after)}
    return json_response(error_body(error), status=status, headers=headers)


def openai_endpoint(handler: ServerHandler[P]) -> ServerHandler[P]:
    """Respond to errors of ``handler`` in OpenAI's format.

    An unexpected error is logged with an id that the response also contains.
    """
    return handle_errors(handler, error_response)


def openai_error_middleware(models_route: web.AbstractRoute) -> Middleware:
    """Return a middleware that responds to unknown paths and methods of a mounted API in OpenAI's format.

    :param models_route: route of ``/models``, which determines the API's prefix. A parent application may add its own
        prefix later.
    """

    def applies_to(request: web.Request) -> bool:
        prefix = models_route.resource.canonical.removesuffix("/models") if models_route.resource is not None else ""
        return prefix != "" and f"{request.path}/".startswith(f"{prefix}/")

    return json_error_middleware(error_response, applies_to)
