"""One endpoint, as the tables of them have it."""

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

NOTHING: Mapping[str, Any] = {}


class Api(NamedTuple):
    """One endpoint, and what /openapi.json says of it besides what the handler's docstring says.

    name: also the handler's, and what the roles' ``allow`` lists say.
    body: the model of the JSON that it reads. query: that of the query's parameters.
    answers: what a status of 200 comes with, by media type: a type that pydantic knows. ``str`` is text.
    parts: handlers of other paths that come with it, and are of no use without; nothing is said of them, unless the
        handler is the endpoint's own.
    errors: what it is refused with, besides what goes for all (see :mod:`aiochatstream.web.openapi.document`).
    """

    name: str
    route: Callable[..., web.RouteDef]
    path: str
    handler: ServerHandler[...]
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    answers: Mapping[str, Any] = NOTHING
    errors: tuple[type[ChatStreamError], ...] = ()
    parts: Mapping[str, ServerHandler[...]] = NOTHING


class BoundHandler(functools.partial[Awaitable[web.StreamResponse]]):
    """A handler bound to its server, as it is mounted in an application.

    tag: the API that the endpoint is part of.
    """

    endpoint: Api
    tag: str


def bind(api: Api, handler: ServerHandler[...], server: Server, tag: str, **more: Any) -> BoundHandler:
    """Return ``handler``, one of ``api``, with ``server`` and ``more`` as its first arguments."""
    bound = BoundHandler(handler, server, **more)
    bound.endpoint, bound.tag = api, tag
    return bound


def mount(apis: Iterable[Api], server: Server, prefix: str, tag: str, **more: Any) -> list[web.RouteDef]:
    """The endpoints of ``server``, each after ``prefix``; ``more`` is handed to their handlers.

    Raises ValueError for a prefix that is none.
    """
    if prefix and (not prefix.startswith("/") or prefix.endswith("/") or "{" in prefix):
        raise ValueError(f"prefix: must begin with a slash and not end with one, without braces, not {prefix!r}.")
    routes = []
    for api in apis:
        for path, handler in ((api.path, api.handler), *api.parts.items()):
            routes.append(api.route(prefix + path, bind(api, handler, server, tag, **more)))
    return routes
