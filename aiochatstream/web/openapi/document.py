"""The OpenAPI document of the mounted endpoints: https://spec.openapis.org/oas/v3.1.1.html.

It is generated from the route tables, the request models and the response types, and contains each endpoint that an
application has mounted, with its path there.
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
from aiochatstream.web.endpoint import EVENTS, JSON, BoundHandler, Endpoint
from aiochatstream.web.openai import response_models as openai_models
from aiochatstream.web.response_models import ErrorBody
from aiochatstream.web.server import Server

if TYPE_CHECKING:
    from aiochatstream.web.openai.endpoint_context import EndpointContext

BODY_ERRORS = (BadRequest, InvalidValue, RequestTimeout, TooLarge, UnsupportedMediaType, TooManyRequests, Draining)
"""Errors of all endpoints that read a body."""

ROUTE = re.compile(r"``[A-Z]+ [^`]+``: ")
"""Beginning of each handler's docstring."""

CHAT, OPENAI = "Chat", "OpenAI's API"
"""Tags of the endpoints."""


class MountedEndpoint(NamedTuple):
    """An endpoint at a path of an application.

    requires_key: whether clients must send an API key.
    """

    endpoint: Endpoint
    tag: str
    method: str
    path: str
    requires_key: bool


def mounted_endpoints(server: Server, app: web.Application) -> Iterator[MountedEndpoint]:
    """Yield the endpoints of ``server`` in ``app``."""
    for route in app.router.routes():
        bound = route.handler
        if route.method == hdrs.METH_HEAD or route.resource is None or not isinstance(bound, BoundHandler):
            continue
        if bound.func is bound.endpoint.handler and bound.args == (server,):
            context: EndpointContext | None = bound.keywords.get("context")
            requires_key = context is not None and context.keys.required
            yield MountedEndpoint(
                bound.endpoint, bound.tag, route.method.lower(), route.resource.canonical, requires_key
            )


def document(endpoints: Sequence[MountedEndpoint], *, overload_status: int) -> dict[str, Any]:
    """Return the OpenAPI document of ``endpoints``. Takes about 0.1 s.

    :param overload_status: status of responses if the queue is full.
    """
    types: dict[Any, Any] = {}
    for endpoint in {mounted.endpoint.name: mounted.endpoint for mounted in endpoints}.values():
        if endpoint.body is not None:
            types[endpoint.body] = "validation"
        types |= dict.fromkeys(endpoint.responses.values(), "serialization")
    types |= dict.fromkeys((ErrorBody, openai_models.OpenAIErrorBody), "serialization")
    schemas_by_mode, definitions = TypeAdapter.json_schemas(
        [(type_, mode, TypeAdapter(type_)) for type_, mode in types.items()],
        ref_template="#/components/schemas/{model}",
    )
    schemas = {type_: schemas_by_mode[type_, mode] for type_, mode in types.items()}
    paths: dict[str, dict[str, Any]] = {}
    names: Counter[str] = Counter()
    for mounted in endpoints:
        operation = paths.setdefault(mounted.path, {})[mounted.method] = _operation(mounted, schemas, overload_status)
        name = mounted.endpoint.name
        if names[name]:  # mounted at several paths
            operation["operationId"] += f"_{names[name] + 1}"
        names[name] += 1
    components = {"schemas": definitions.get("$defs", {})}
    if any(mounted.requires_key for mounted in endpoints):
        components["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "aiochatstream", "version": metadata.version("aiochatstream")},
        "paths": paths,
        "components": components,
    }


def _operation(mounted: MountedEndpoint, schemas: Mapping[Any, dict[str, Any]], overload_status: int) -> dict[str, Any]:
    endpoint = mounted.endpoint
    text = ROUTE.sub("", (endpoint.handler.__doc__ or "").strip(), count=1).replace("``", "`")
    summary, _, description = (text[:1].upper() + text[1:]).partition("\n\n")
    is_openai = mounted.tag == OPENAI
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "tags": [mounted.tag],
        "summary": " ".join(summary.split()),
        "responses": _responses(endpoint, schemas, overload_status, is_openai=is_openai),
    }
    if description:
        operation["description"] = " ".join(description.split())
    query_parameters = [] if endpoint.query is None else _query_parameters(endpoint.query)
    parameters = [*_path_parameters(mounted.path), *query_parameters]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        required = any(field.is_required() for field in endpoint.body.model_fields.values())
        operation["requestBody"] = {"required": required, "content": {JSON: {"schema": schemas[endpoint.body]}}}
    if mounted.requires_key:
        operation["security"] = [{"api_key": []}]
    return operation


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query_parameters(query: type[BaseModel]) -> Iterator[dict[str, Any]]:
    for name, schema in query.model_json_schema()["properties"].items():
        yield {"name": name, "in": "query", "schema": schema}


def _responses(
    endpoint: Endpoint, schemas: Mapping[Any, dict[str, Any]], overload_status: int, *, is_openai: bool
) -> dict[str, Any]:
    content = {
        media: {"schema": _event_schema(kind, schemas) if media == EVENTS else schemas[kind]}
        for media, kind in endpoint.responses.items()
    }
    responses: dict[str, Any] = {"200": {"description": _describe_success(endpoint), "content": content}}
    errors: set[type[ChatStreamError]] = set(endpoint.errors)
    if endpoint.body is not None:
        errors.update(BODY_ERRORS)
    if endpoint.query is not None:
        errors.add(InvalidValue)
    if is_openai:
        errors |= {InvalidKey, Forbidden}
    elif endpoint.name not in ALWAYS_ALLOWED:
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


def _event_schema(kind: Any, schemas: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of a server-sent event: its data is JSON of ``kind`` or the mark of the end, or any string."""
    data: dict[str, Any] = {"type": "string"}
    if kind is not str:
        data["anyOf"] = [{"const": "[DONE]"}, {"contentMediaType": JSON, "contentSchema": schemas[kind]}]
    properties = {"data": data, "event": {"type": "string"}}
    return {"type": "object", "properties": properties, "required": ["data"]}


def _describe_success(endpoint: Endpoint) -> str:
    return "Success; a stream contains an event for each piece of text." if EVENTS in endpoint.responses else "Success."


def _by_status(errors: set[type[ChatStreamError]], overload_status: int, *, is_openai: bool) -> dict[int, list[str]]:
    """Return the error codes of each status, each with its meaning."""
    descriptions: dict[int, list[str]] = {}
    for error in sorted(errors, key=lambda error: error.code):
        status = overload_status if error is TooManyRequests else error.status
        if is_openai and error is InvalidValue:
            status = BadRequest.status
        meaning = (error.__doc__ or "").partition("\n")[0].removesuffix(".")
        descriptions.setdefault(status, []).append(f"{error.code}: {meaning}")
    return descriptions
