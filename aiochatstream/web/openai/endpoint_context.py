"""One mounted OpenAI API: who may call it, and what its model is called."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import web

from aiochatstream.errors import ModelNotFound
from aiochatstream.web.auth.access import check_site
from aiochatstream.web.openai.keys import ApiKeys
from aiochatstream.web.openai.request_models import GenerationRequest
from aiochatstream.web.openai.response_models import Model
from aiochatstream.web.request_reading import read_body
from aiochatstream.web.server import Server

Asked = TypeVar("Asked", bound=GenerationRequest)


@dataclass(frozen=True)
class Service:
    """What the handlers need besides the server. Raises ValueError for a name that is none.

    model_name: what clients call the model; None is its own name.
    began: seconds since 1970.
    """

    keys: ApiKeys
    model_name: str | None = None
    began: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if self.model_name is not None and not (isinstance(self.model_name, str) and self.model_name):
            raise ValueError(f"model_name: must be a string that is not empty, or None, not {self.model_name!r}.")

    def check(self, server: Server, request: web.Request) -> str:
        """Who asks, see :meth:`ApiKeys.check`. Reads no body.

        Raises as :func:`~aiochatstream.web.auth.access.check_site`, and :class:`~aiochatstream.errors.InvalidKey`.
        """
        check_site(server, request)
        return self.keys.check(request)

    async def read(self, server: Server, request: web.Request, schema: type[Asked]) -> tuple[Asked, str]:
        """What an admitted client asks for, validated, and who asks.

        Raises as :meth:`check`, :meth:`Runtime.check_room` and :func:`read_body`, and
        :class:`~aiochatstream.errors.ModelNotFound`.
        """
        owner = self.check(server, request)
        server.check_room()
        asked = await read_body(server, request, schema)
        server.check_ready()
        if asked.model:
            self.check_model(server, asked.model)
        return asked, owner

    def check_model(self, server: Server, name: str) -> None:
        """Raises :class:`~aiochatstream.errors.ModelNotFound` for any but the one that is served."""
        here = self.name(server)
        if name != here:
            raise ModelNotFound(f"model: {name[:200]!r} is not served here; {here!r} is.")

    def name(self, server: Server) -> str:
        """What clients call the model. Known when the server is ready."""
        return self.model_name or server.engine.describe().get("model") or "model"

    def describe(self, server: Server) -> Model:
        """The model, as clients are told of it."""
        return {
            "id": self.name(server),
            "object": "model",
            "created": self.began,
            "owned_by": "aiochatstream",
            "max_model_len": server.context_len,
        }
