"""One endpoint, as the tables of them have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from aiohttp import web
from pydantic import BaseModel

from aiochatstream.errors import ChatStreamError
from aiochatstream.web.errors import ServerHandler


class Api(NamedTuple):
    """One endpoint, and what /openapi.json says of it beside the handler's docstring.

    name: also the handler's, and what the roles' ``allow`` lists say.
    body: what it reads, of a JSON body. query: of the query.
    answers: what it answers with status 200, by media type: a type of JSON, or a description of other text.
    errors: what it refuses with, beside what all with a body, or all that a role may not call, refuse with.
    """

    name: str
    route: Callable[..., web.RouteDef]
    path: str
    handler: ServerHandler[...]
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    answers: dict[str, Any] | None = None
    errors: tuple[type[ChatStreamError], ...] = ()
