"""Context of the endpoints of one mounted OpenAI API: its keys and the name of its model."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import web

from aiochatstream.errors import ModelNotFound
from aiochatstream.web.auth.access import check_host_and_origin
from aiochatstream.web.openai.keys import ApiKeys
from aiochatstream.web.openai.request_models import GenerationRequest
from aiochatstream.web.openai.response_models import Model
from aiochatstream.web.request_reading import read_body
from aiochatstream.web.server import Server

RequestT = TypeVar("RequestT", bound=GenerationRequest)


@dataclass(frozen=True)
class EndpointContext:
    """Shared state of the handlers of one mounted API.

    model_name: name by which clients request the model; None: the model's own name. Raises ValueError if empty.
    created: time at which the API was mounted, in seconds since 1970.
    """

    keys: ApiKeys
    model_name: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if self.model_name is not None and not (isinstance(self.model_name, str) and self.model_name):
            raise ValueError(f"model_name: must be a non-empty string or None, not {self.model_name!r}.")

    def check_access(self, server: Server, request: web.Request) -> str:
        """Return the owner of the request's prompts, see :meth:`ApiKeys.check`. Does not read the body.

        Raises as :func:`~aiochatstream.web.auth.access.check_host_and_origin`, and
        :class:`~aiochatstream.errors.InvalidKey`.
        """
        check_host_and_origin(server, request)
        return self.keys.check(request)

    async def read_request(self, server: Server, request: web.Request, model: type[RequestT]) -> tuple[RequestT, str]:
        """Return the validated body of a request, and the owner of its prompts.

        Raises as :meth:`check_access`, :meth:`Runtime.check_room` and :func:`read_body`, and
        :class:`~aiochatstream.errors.ModelNotFound`.
        """
        owner = self.check_access(server, request)
        server.check_room()
        body = await read_body(server, request, model)
        server.check_ready()
        if body.model:
            self.check_model(server, body.model)
        return body, owner

    def check_model(self, server: Server, name: str) -> None:
        """Raise :class:`~aiochatstream.errors.ModelNotFound` unless ``name`` is the served model's."""
        served = self.served_name(server)
        if name != served:
            raise ModelNotFound(f"model: must be {served!r}, not {name[:200]!r}.")

    def served_name(self, server: Server) -> str:
        """Return the name by which clients request the model. Requires a server that is ready."""
        return self.model_name or server.engine.describe().get("model") or "model"

    def describe_model(self, server: Server) -> Model:
        """Return the served model as an object of OpenAI's API."""
        return {
            "id": self.served_name(server),
            "object": "model",
            "created": self.created,
            "owned_by": "aiochatstream",
            "max_model_len": server.context_len,
        }
