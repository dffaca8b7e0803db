"""List and description of the served models."""

from __future__ import annotations

from aiohttp import web

from aiochatstream.web.json import json_response
from aiochatstream.web.openai.endpoint_context import EndpointContext
from aiochatstream.web.openai.errors import openai_endpoint
from aiochatstream.web.openai.response_models import ModelList
from aiochatstream.web.server import Server


@openai_endpoint
async def list_models(server: Server, request: web.Request, context: EndpointContext) -> web.StreamResponse:
    """``GET /v1/models``: a list of the served models."""
    context.check_access(server, request)
    models: ModelList = {"object": "list", "data": context.describe_models()}
    return json_response(models)


@openai_endpoint
async def retrieve_model(server: Server, request: web.Request, context: EndpointContext) -> web.StreamResponse:
    """``GET /v1/models/{model}``: a served model. Its name may contain slashes."""
    context.check_access(server, request)
    return json_response(context.describe_model(*context.choose(request.match_info["model"])))
