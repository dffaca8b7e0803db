"""Context of the endpoints of one mounted OpenAI API: its keys, and the servers of its models."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel

from aiochatstream.engines.upstream import hops
from aiochatstream.errors import InvalidValue, ModelNotFound, Unavailable
from aiochatstream.validation import alternatives
from aiochatstream.web.auth.access import check_host_and_origin
from aiochatstream.web.openai.keys import CONNECTION, ApiKeys
from aiochatstream.web.openai.request_models import RequestedModel
from aiochatstream.web.openai.response_models import Model
from aiochatstream.web.request_reading import parse_body, read_bytes
from aiochatstream.web.server import Server

Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request to one of the models.

    server: server of the model.
    model: name of the model for clients.
    content: body, a JSON object.
    owner: owner of the request's prompts, see :meth:`ApiKeys.check`.
    """

    request: web.Request
    server: Server
    model: str
    content: bytes
    owner: str

    def owner_of(self, cache_salt: str | None) -> str:
        """Return the owner of prompts with a salt. Without a key, everybody with the same salt is the same owner."""
        if cache_salt is None:
            return self.owner
        return f"salt:{cache_salt}" if self.owner.startswith(CONNECTION) else f"{self.owner} salt:{cache_salt}"

    def parse(self, schema: type[Schema]) -> Schema:
        """Return the validated body. Raise the errors of :func:`parse_body`."""
        return parse_body(self.request, self.content, schema)


@dataclass(frozen=True)
class EndpointContext:
    """Shared state of the handlers of one mounted API. The handlers' own server, the first one, checks the host and the
    origin of a request, and receives its body.

    servers: servers by the names by which clients request their models; an empty name is the model's own name.
    default: server of requests without a name; None if they are refused.
    created: time at which the API was mounted, in seconds since 1970.
    """

    keys: ApiKeys
    servers: Mapping[str, Server]
    default: Server | None
    created: int = field(default_factory=lambda: int(time.time()))

    def check_access(self, server: Server, request: web.Request) -> str:
        """Return the owner of the request's prompts, see :meth:`ApiKeys.check`. Does not read the body.

        Raise the errors of :func:`~aiochatstream.web.auth.access.check_host_and_origin`, and
        :class:`~aiochatstream.errors.InvalidKey`.
        """
        check_host_and_origin(server, request)
        return self.keys.check(request)

    async def receive(self, server: Server, request: web.Request, *, needs_slot: bool = True) -> ApiRequest:
        """Return a request whose body is received, with the server of its model.

        :param needs_slot: True refuses a request to the only model before its body is read, if the queue is full.

        Raise the errors of :meth:`check_access`, :meth:`Runtime.check_room`, :func:`read_bytes`, :meth:`choose` and
        :func:`~aiochatstream.engines.upstream.hops.receive`.
        """
        owner = self.check_access(server, request)
        if needs_slot and len(self.servers) == 1:
            server.check_room()
        content = await read_bytes(server, request)
        name, chosen = self.choose(parse_body(request, content, RequestedModel).model)
        hops.receive(request.headers.get(hops.HEADER), chosen.engine.server_id)
        return ApiRequest(request, chosen, name, content, owner)

    def choose(self, name: str | None) -> tuple[str, Server]:
        """Return the name of the requested model, and its server, which is ready.

        :param name: name in the request; None or empty for the default.

        Raise :class:`~aiochatstream.errors.ModelNotFound`, :class:`~aiochatstream.errors.InvalidValue` if there is no
        default, and the errors of :meth:`Runtime.check_ready`.
        """
        for served, server in self.servers.items():
            if not served:
                server.check_ready()  # only then its name is known
            if self._name(served, server) == name or (not name and server is self.default):
                server.check_ready()
                return self._name(served, server), server
        names = alternatives([self._name(*item) for item in self.servers.items()])
        if not name:
            raise InvalidValue(f"model: must be {names}.")
        raise ModelNotFound(f"model: must be {names}, not {name[:200]!r}.")

    def describe_models(self) -> list[Model]:
        """Return the models that can answer, as objects of OpenAI's API.

        Raise the error of :meth:`Runtime.check_ready` of the first one if none can.
        """
        ready = [(name, server) for name, server in self.servers.items() if server.is_ready]
        if not ready:
            next(iter(self.servers.values())).check_ready()
        return [self.describe_model(self._name(name, server), server) for name, server in ready]

    def describe_model(self, name: str, server: Server) -> Model:
        """Return a loaded model as an object of OpenAI's API."""
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": server.engine.owned_by,
            "root": own_name(server),
            "max_model_len": server.context_len,
        }

    def check_ready(self) -> None:
        """Raise the error of :meth:`Runtime.check_ready` of the first server if no server is ready."""
        errors: list[Unavailable] = []
        for server in self.servers.values():
            try:
                server.check_ready()
            except Unavailable as error:
                errors.append(error)
            else:
                return
        raise errors[0]

    def _name(self, served: str, server: Server) -> str:
        return served or own_name(server)


def own_name(server: Server) -> str:
    """Return the model's own name. Requires a server that is ready."""
    return server.engine.describe().get("model") or "model"
