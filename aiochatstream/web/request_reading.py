"""Reading and validating bodies and queries of requests."""

from __future__ import annotations

import codecs
import sys
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from aiochatstream.conversations.conversation import MAX_CHARS, MAX_TURNS
from aiochatstream.errors import BadRequest, InvalidValue, TooLarge, UnsupportedMediaType
from aiochatstream.validation import describe
from aiochatstream.web.json import dumps
from aiochatstream.web.request_models import ImportRequest
from aiochatstream.web.server import Server

STRUCTURE = b"{}[],:"

MAX_IMPORT_STRUCTURE = MAX_CHARS + 2 * MAX_TURNS * 16
"""Maximum number of these characters that the texts and fields of an export can contain."""

MAX_IMPORT_BYTES = 12 * MAX_CHARS + 2 * MAX_TURNS * 512
"""Length of an export whose characters are all outside the Basic Multilingual Plane, and escaped."""

Schema = TypeVar("Schema", bound=BaseModel)


async def read_body(server: Server, request: web.Request, schema: type[Schema]) -> Schema:
    """Return the validated JSON body of ``request``; an absent body is an empty object.

    Raise the errors of :func:`read_bytes` and :func:`parse_body`.
    """
    return parse_body(request, await read_bytes(server, request), schema)


async def read_bytes(server: Server, request: web.Request) -> bytes:
    """Return the body of ``request``.

    Its maximum length is the smaller one of the server's limit and the application's.

    Raise the errors of :meth:`Uploads.read`.
    """
    max_bytes = min(server.limits.max_request_bytes, request.client_max_size or sys.maxsize)
    return await server.uploads.read(request, max_bytes)


async def read_import(server: Server, request: web.Request) -> ImportRequest:
    """Return the validated body of ``POST /import``, which may be as long as any escaped form of an export.

    Raise the errors of :func:`read_body`.
    """
    body = await server.uploads.read(request, MAX_IMPORT_BYTES)
    if len(body) - len(body.translate(None, STRUCTURE)) > MAX_IMPORT_STRUCTURE:  # would take seconds to parse
        raise TooLarge(
            f"The body is too large: at most {MAX_IMPORT_STRUCTURE} of the characters {STRUCTURE.decode()} may occur."
        )
    return parse_body(request, body, ImportRequest)


def parse_body(request: web.Request, body: bytes, schema: type[Schema]) -> Schema:
    """Return the validated JSON ``body`` of ``request``. Raise BadRequest, UnsupportedMediaType or InvalidValue."""
    if body and request.content_type != "application/json":
        raise UnsupportedMediaType(f"The body must be application/json, not {request.content_type}.")
    return _parse(body, schema)


def validate_body(body: dict[str, Any] | bytes, schema: type[Schema], *, max_bytes: int) -> Schema:
    """Return the validated body that an application has read itself. A dict is encoded as JSON first, to apply the same
    rules as to bytes.

    Raise BadRequest, TooLarge or InvalidValue.
    """
    try:
        data = body if isinstance(body, bytes) else dumps(body).encode(errors="surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest("request_body: must be bytes, or a dict of JSON values.") from error
    if len(data) > max_bytes:
        raise TooLarge(f"The body is too large: at most {max_bytes} bytes are accepted.")
    return _parse(data, schema)


def _parse(body: bytes, schema: type[Schema]) -> Schema:
    body = body.removeprefix(codecs.BOM_UTF8)  # RFC 8259 allows to ignore a BOM
    try:
        parsed = schema.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise BadRequest(f"The body is not JSON: {first['ctx']['error']}.") from None
        if first["type"] == "model_type" and not first["loc"]:
            raise InvalidValue("The body must be a JSON object.") from None
        raise InvalidValue(describe(error, schema)) from None
    if b"NaN" in body or b"Infinity" in body:  # pydantic accepts them in fields of any type
        try:
            from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise BadRequest(f"The body is not JSON: {error}.") from None
    return parsed


def read_query(request: web.Request, schema: type[Schema]) -> Schema:
    """Return the validated query parameters of ``request``. Raise InvalidValue."""
    try:
        return schema.model_validate(dict(request.query))
    except ValidationError as error:
        raise InvalidValue(describe(error, schema)) from None
