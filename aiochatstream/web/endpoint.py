"""Endpoints: the rows of the route tables, and their mounting as aiohttp routes."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from aiohttp import web
from pydantic import BaseModel

from aiochatstream.errors import ChatStreamError
from aiochatstream.web.errors import ServerHandler
from aiochatstream.web.server import Server

JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"

EMPTY: Mapping[str, Any] = {}


class Endpoint(NamedTuple):
    """An endpoint, and its description for /openapi.json. The summary there is the handler's docstring.

    name: name of the handler, used in the ``allow`` lists of roles.
    body, query: models of the JSON body and of the query string.
    responses: types of the body of a response with status 200, by media type; ``str`` is text.
    parts: handlers of further paths that belong to the endpoint. A part is documented only if its handler is the
        endpoint's handler.
    errors: errors of this endpoint, besides those of all endpoints (see :mod:`aiochatstream.web.openapi.document`).
    """

    name: str
    route: Callable[..., web.RouteDef]
    path: str
    handler: ServerHandler[...]
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    responses: Mapping[str, Any] = EMPTY
    errors: tuple[type[ChatStreamError], ...] = ()
    parts: Mapping[str, ServerHandler[...]] = EMPTY


class BoundHandler(functools.partial[Awaitable[web.StreamResponse]]):
    """A handler bound to its server, for one route of an application.

    tag: name of the API that the endpoint belongs to.
    """

    endpoint: Endpoint
    tag: str


def bind(endpoint: Endpoint, handler: ServerHandler[...], server: Server, tag: str, **options: Any) -> BoundHandler:
    """Return ``handler`` of ``endpoint``, with ``server`` and ``options`` as its first arguments."""
    bound = BoundHandler(handler, server, **options)
    bound.endpoint, bound.tag = endpoint, tag
    return bound


def mount(endpoints: Iterable[Endpoint], server: Server, prefix: str, tag: str, **options: Any) -> list[web.RouteDef]:
    """Return routes that serve ``endpoints`` below ``prefix``. ``options`` are passed to the handlers.

    Raises ValueError for an invalid prefix.
    """
    if prefix and (not prefix.startswith("/") or prefix.endswith("/") or "{" in prefix):
        raise ValueError(f"prefix: must begin with a slash and not end with one, without braces, not {prefix!r}.")
    routes = []
    for endpoint in endpoints:
        for path, handler in ((endpoint.path, endpoint.handler), *endpoint.parts.items()):
            routes.append(endpoint.route(prefix + path, bind(endpoint, handler, server, tag, **options)))
    return routes
