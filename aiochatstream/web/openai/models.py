"""The models that there are: one."""

from __future__ import annotations

from aiohttp import web

from aiochatstream.web.json import json_response
from aiochatstream.web.openai.endpoint_context import Service
from aiochatstream.web.openai.errors import answers_openai_errors
from aiochatstream.web.openai.response_models import ModelList
from aiochatstream.web.server import Server


@answers_openai_errors
async def list_models(server: Server, request: web.Request, service: Service) -> web.StreamResponse:
    """``GET /v1/models``: the model that is served, in a list."""
    service.check(server, request)
    server.check_ready()
    models: ModelList = {"object": "list", "data": [service.describe(server)]}
    return json_response(models)


@answers_openai_errors
async def retrieve_model(server: Server, request: web.Request, service: Service) -> web.StreamResponse:
    """``GET /v1/models/{model}``: one model; the name may have slashes in it."""
    service.check(server, request)
    server.check_ready()
    service.check_model(server, request.match_info["model"])
    return json_response(service.describe(server))
