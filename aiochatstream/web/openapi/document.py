"""The description of the endpoints for programs: https://spec.openapis.org/oas/v3.1.1.html.

It is made of the tables that mount them, of the models that validate, and of the types of what is answered; each
endpoint that an application has mounted is told, with the path that it has there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import hdrs, web
from pydantic import BaseModel, TypeAdapter

from aiochatstream.errors import (
    BadRequest,
    ChatStreamError,
    Draining,
    Forbidden,
    InvalidKey,
    InvalidValue,
    RequestTimeout,
    StoreUnavailable,
    TooLarge,
    TooManyAttempts,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)
from aiochatstream.web.auth.roles import ALWAYS_ALLOWED
from aiochatstream.web.endpoint import EVENTS, JSON, Api, BoundHandler
from aiochatstream.web.openai import response_models as openai_models
from aiochatstream.web.response_models import ErrorBody
from aiochatstream.web.server import Server

if TYPE_CHECKING:
    from aiochatstream.web.openai.endpoint_context import EndpointContext

OF_BODIES = (BadRequest, InvalidValue, RequestTimeout, TooLarge, UnsupportedMediaType, TooManyRequests, Draining)
"""What any body may be refused with."""

ROUTE = re.compile(r"``[A-Z]+ [^`]+``: ")
"""What the docstring of a handler begins with."""

CHAT, OPENAI = "Chat", "OpenAI's API"
"""Tags of the endpoints."""


class Mounted(NamedTuple):
    """One endpoint of an application, and where it is there.

    takes_key: whether it answers only who says an API key.
    """

    api: Api
    tag: str
    method: str
    path: str
    takes_key: bool


def mounted(server: Server, app: web.Application) -> Iterator[Mounted]:
    """Yield the endpoints of ``server`` in ``app``."""
    for route in app.router.routes():
        bound = route.handler
        if route.method == hdrs.METH_HEAD or route.resource is None or not isinstance(bound, BoundHandler):
            continue
        if bound.func is bound.endpoint.handler and bound.args == (server,):
            context: EndpointContext | None = bound.keywords.get("context")
            takes_key = context is not None and context.keys.required
            yield Mounted(bound.endpoint, bound.tag, route.method.lower(), route.resource.canonical, takes_key)


def document(endpoints: Sequence[Mounted], *, overload_status: int) -> dict[str, Any]:
    """The description. Takes a tenth of a second or so.

    :param overload_status: the status of a full queue.
    """
    types: dict[Any, Any] = {}
    for api in {one.api.name: one.api for one in endpoints}.values():
        if api.body is not None:
            types[api.body] = "validation"
        types |= dict.fromkeys(api.answers.values(), "serialization")
    types |= dict.fromkeys((ErrorBody, openai_models.OpenAIErrorBody), "serialization")
    known, definitions = TypeAdapter.json_schemas(
        [(one, mode, TypeAdapter(one)) for one, mode in types.items()],
        ref_template="#/components/schemas/{model}",
    )
    schemas = {one: known[one, mode] for one, mode in types.items()}
    paths: dict[str, dict[str, Any]] = {}
    names: Counter[str] = Counter()
    for one in endpoints:
        operation = paths.setdefault(one.path, {})[one.method] = _operation(one, schemas, overload_status)
        if names[one.api.name]:  # mounted in several places
            operation["operationId"] += f"_{names[one.api.name] + 1}"
        names[one.api.name] += 1
    components = {"schemas": definitions.get("$defs", {})}
    if any(one.takes_key for one in endpoints):
        components["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "aiochatstream", "version": metadata.version("aiochatstream")},
        "paths": paths,
        "components": components,
    }


def _operation(one: Mounted, schemas: Mapping[Any, dict[str, Any]], overload_status: int) -> dict[str, Any]:
    api = one.api
    text = ROUTE.sub("", (api.handler.__doc__ or "").strip(), count=1).replace("``", "`")
    summary, _, description = (text[:1].upper() + text[1:]).partition("\n\n")
    is_openai = one.tag == OPENAI
    operation: dict[str, Any] = {
        "operationId": api.name,
        "tags": [one.tag],
        "summary": " ".join(summary.split()),
        "responses": _responses(api, schemas, overload_status, is_openai=is_openai),
    }
    if description:
        operation["description"] = " ".join(description.split())
    parameters = [*_path_parameters(one.path), *([] if api.query is None else _query_parameters(api.query))]
    if parameters:
        operation["parameters"] = parameters
    if api.body is not None:
        required = any(field.is_required() for field in api.body.model_fields.values())
        operation["requestBody"] = {"required": required, "content": {JSON: {"schema": schemas[api.body]}}}
    if one.takes_key:
        operation["security"] = [{"api_key": []}]
    return operation


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query_parameters(query: type[BaseModel]) -> Iterator[dict[str, Any]]:
    for name, schema in query.model_json_schema()["properties"].items():
        yield {"name": name, "in": "query", "schema": schema}


def _responses(
    api: Api, schemas: Mapping[Any, dict[str, Any]], overload_status: int, *, is_openai: bool
) -> dict[str, Any]:
    content = {media: {"schema": schemas[kind]} for media, kind in api.answers.items()}
    responses: dict[str, Any] = {"200": {"description": _described(api), "content": content}}
    errors: set[type[ChatStreamError]] = set(api.errors)
    if api.body is not None:
        errors.update(OF_BODIES)
    if api.query is not None:
        errors.add(InvalidValue)
    if is_openai:
        errors |= {InvalidKey, Forbidden}
    elif api.name not in ALWAYS_ALLOWED:
        errors |= {Unauthorized, Forbidden, StoreUnavailable, TooManyAttempts}
    body = {JSON: {"schema": schemas[openai_models.OpenAIErrorBody if is_openai else ErrorBody]}}
    for status, codes in sorted(_by_status(errors, overload_status, is_openai=is_openai).items()):
        responses[str(status)] = {"description": "; ".join(codes), "content": body}
        if status in (Unavailable.status, TooManyAttempts.status, overload_status):
            units = {hdrs.RETRY_AFTER: "seconds"} | ({"Retry-After-Ms": "milliseconds"} if is_openai else {})
            number = {"type": "integer", "minimum": 1}
            headers = {name: {"description": unit, "schema": number} for name, unit in units.items()}
            responses[str(status)]["headers"] = headers
    return responses


def _described(api: Api) -> str:
    return "An event for each piece, where a stream is asked for." if EVENTS in api.answers else "Done."


def _by_status(errors: set[type[ChatStreamError]], overload_status: int, *, is_openai: bool) -> dict[int, list[str]]:
    """What each status means, a sentence with each code."""
    found: dict[int, list[str]] = {}
    for error in sorted(errors, key=lambda error: error.code):
        status = overload_status if error is TooManyRequests else error.status
        if is_openai and error is InvalidValue:
            status = BadRequest.status
        meaning = (error.__doc__ or "").partition("\n")[0].removesuffix(".")
        found.setdefault(status, []).append(f"{error.code}: {meaning}")
    return found
