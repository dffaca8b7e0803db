"""Route table of OpenAI's API."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from aiochatstream.errors import (
    ContextLengthExceeded,
    Draining,
    EngineFailed,
    LoopDetected,
    ModelNotFound,
    NoRecording,
    Starting,
    TooManyRequests,
    UpstreamFailed,
    UpstreamUnavailable,
)
from aiochatstream.web.auth import cors
from aiochatstream.web.endpoint import EVENTS, JSON, Endpoint, mount
from aiochatstream.web.endpoints.status import health_middleware
from aiochatstream.web.openai import (
    chat,
    completions,
    embeddings,
    models,
    response_models,
    response_object,
    responses,
    tokenization,
)
from aiochatstream.web.openai.chat_request import ChatCompletionRequest
from aiochatstream.web.openai.completion_request import CompletionRequest
from aiochatstream.web.openai.endpoint_context import EndpointContext
from aiochatstream.web.openai.errors import EXPOSED_HEADERS, openai_error_middleware
from aiochatstream.web.openai.relay import is_relayed
from aiochatstream.web.openai.response_request import ResponseRequest
from aiochatstream.web.openai.tokenization_requests import DetokenizeRequest, TokenizeRequest
from aiochatstream.web.openapi.document import OPENAI
from aiochatstream.web.server import Server

GENERATION_ERRORS = (
    ModelNotFound,
    NoRecording,
    ContextLengthExceeded,
    TooManyRequests,
    Starting,
    Draining,
    EngineFailed,
    LoopDetected,
    UpstreamFailed,
    UpstreamUnavailable,
)

ENDPOINTS = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint(
            "list_models",
            web.get,
            "/models",
            models.list_models,
            responses={JSON: response_models.ModelList},
            errors=(Starting, Draining),
        ),
        Endpoint(
            "retrieve_model",
            web.get,
            r"/models/{model:[\s\S]+}",
            models.retrieve_model,
            responses={JSON: response_models.Model},
            errors=(ModelNotFound, Starting, Draining),
        ),
        Endpoint(
            "chat_completions",
            web.post,
            "/chat/completions",
            chat.chat_completions,
            body=ChatCompletionRequest,
            responses={JSON: response_models.ChatCompletion, EVENTS: response_models.ChatCompletionChunk},
            errors=GENERATION_ERRORS,
        ),
        Endpoint(
            "completions",
            web.post,
            "/completions",
            completions.completions,
            body=CompletionRequest,
            responses={JSON: response_models.Completion, EVENTS: response_models.CompletionChunk},
            errors=GENERATION_ERRORS,
        ),
        Endpoint(
            "responses",
            web.post,
            "/responses",
            responses.responses,
            body=ResponseRequest,
            responses={JSON: response_object.Response, EVENTS: response_object.ResponseEvent},
            errors=GENERATION_ERRORS,
        ),
    )
}

TOKENIZATION = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint(
            "tokenize",
            web.post,
            "/tokenize",
            tokenization.tokenize,
            body=TokenizeRequest,
            responses={JSON: response_models.TokenizeResponse},
            errors=(ModelNotFound, ContextLengthExceeded, Starting),
        ),
        Endpoint(
            "detokenize",
            web.post,
            "/detokenize",
            tokenization.detokenize,
            body=DetokenizeRequest,
            responses={JSON: response_models.DetokenizeResponse},
            errors=(ModelNotFound, Starting),
        ),
    )
}
"""Endpoints beside the folder ``/v1``, as in vLLM."""

RELAYED = {
    "embeddings": Endpoint(
        "embeddings",
        web.post,
        "/embeddings",
        embeddings.embeddings,
        responses={JSON: dict[str, Any]},
        errors=(ModelNotFound, TooManyRequests, Starting, Draining, UpstreamFailed, UpstreamUnavailable),
    )
}
"""Endpoints that exist only if other servers generate the answers of a model."""


def setup(app: web.Application, server: Server, context: EndpointContext, prefix: str) -> None:
    """Add the API to ``app``, with CORS for the server's ``allowed_origins``, errors in OpenAI's format, and
    ``GET /health``.

    :param server: server of the handlers, see :class:`EndpointContext`.

    Raise ValueError for an invalid prefix, and for one that the application already has.
    """
    if any(resource.canonical == f"{prefix}/models" for resource in app.router.resources()):
        raise ValueError(f"prefix: must differ for each model, not {prefix!r}; {prefix}/models exists.")
    routes = mount(ENDPOINTS.values(), server, prefix, OPENAI, context=context)
    if any(map(is_relayed, context.servers.values())):
        routes += mount(RELAYED.values(), server, prefix, OPENAI, context=context)
    routes += mount(TOKENIZATION.values(), server, prefix.removesuffix("/v1"), OPENAI, context=context)
    added = app.add_routes(routes)
    app.middlewares.extend((openai_error_middleware(added[0]), health_middleware(context.check_ready)))
    if server.allowed_origins:
        cors.allow_origins(app, added, server.allowed_origins, allow_headers="*", expose_headers=EXPOSED_HEADERS)
