"""Errors in OpenAI's shape, as its clients understand them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Middleware

from aiochatstream.errors import ChatStreamError, InvalidValue, LoadFailed, TooManyRequests, Unauthorized
from aiochatstream.web.errors import P, ServerHandler, answers_all_errors, errors_as_json
from aiochatstream.web.json import json_response
from aiochatstream.web.openai.response_models import OpenAIErrorBody

FIELD = re.compile(r"([a-z][a-z_0-9]*(?:\.[a-z_0-9]+)*): ")
"""The errors of this project begin with the field that they are about."""

EXPOSED_HEADERS = ("X-Request-Id", "Retry-After", "Retry-After-Ms", "X-Should-Retry")
"""What pages of other origins may read."""


def error_body(error: ChatStreamError) -> OpenAIErrorBody:
    """What tells of ``error``."""
    message, param = error.detail, None
    if error.status < 500 and (named := FIELD.match(message)):
        param = named[1]
    if isinstance(error, TooManyRequests):
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": error.code}}


def rename_field(error: ChatStreamError, names: Mapping[str, str]) -> None:
    """Let ``error`` call the field that it is about as ``names`` say, by the name that it has in the engine."""
    if named := FIELD.match(error.detail):
        error.detail = f"{names.get(named[1], named[1])}: {error.detail[named.end() :]}"


def error_response(error: ChatStreamError, overload_status: int) -> web.Response:
    """The response that tells of ``error``, with what clients go by that try again."""
    status = error.status
    headers = {"X-Request-Id": f"req_{uuid.uuid4().hex}"}
    if isinstance(error, InvalidValue):
        status = 400
    elif isinstance(error, TooManyRequests):
        status = overload_status
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, LoadFailed):
        headers["X-Should-Retry"] = "false"  # clients of OpenAI's would wait for minutes before they tell
    if error.retry_after is not None:
        headers |= {"Retry-After": str(error.retry_after), "Retry-After-Ms": str(1000 * error.retry_after)}
    return json_response(error_body(error), status=status, headers=headers)


def answers_openai_errors(handler: ServerHandler[P]) -> ServerHandler[P]:
    """Answer what ``handler`` raises in OpenAI's shape; an unexpected error is logged with an id that is told, too."""
    return answers_all_errors(handler, error_response)


def errors_as_openai(models: web.AbstractRoute) -> Middleware:
    """Unknown paths and methods below the prefix of a mounted API are answered in OpenAI's shape, too.

    :param models: that of ``/models`` there; a sub-application puts its own prefix before it later.
    """

    def concerns(request: web.Request) -> bool:
        prefix = models.resource.canonical.removesuffix("/models") if models.resource is not None else ""
        return prefix != "" and f"{request.path}/".startswith(f"{prefix}/")

    return errors_as_json(error_response, concerns)
