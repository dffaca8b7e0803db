"""The endpoint of embeddings, which only other servers have."""

from __future__ import annotations

from aiohttp import web

from aiochatstream.errors import NotFound
from aiochatstream.web.openai.endpoint_context import EndpointContext
from aiochatstream.web.openai.errors import openai_endpoint
from aiochatstream.web.openai.relay import is_relayed, relay
from aiochatstream.web.server import Server


@openai_endpoint
async def embeddings(server: Server, request: web.Request, context: EndpointContext) -> web.StreamResponse:
    """``POST /v1/embeddings``: vectors of texts, computed by the model's server."""
    received = await context.receive(server, request)
    if not is_relayed(received.server):
        raise NotFound(f"model: {received.model!r} has no embeddings.")
    return await relay(received, "/v1/embeddings")
