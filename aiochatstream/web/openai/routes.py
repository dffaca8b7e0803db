"""Route table of OpenAI's API."""

from __future__ import annotations

from aiohttp import web

from aiochatstream.errors import (
    ContextLengthExceeded,
    Draining,
    EngineFailed,
    ModelNotFound,
    NoRecording,
    Starting,
    TooManyRequests,
)
from aiochatstream.web.endpoint import EVENTS, JSON, Endpoint
from aiochatstream.web.openai import chat, completions, models, response_models, response_object, responses
from aiochatstream.web.openai.chat_request import ChatCompletionRequest
from aiochatstream.web.openai.completion_request import CompletionRequest
from aiochatstream.web.openai.response_request import ResponseRequest

GENERATION_ERRORS = (
    ModelNotFound,
    NoRecording,
    ContextLengthExceeded,
    TooManyRequests,
    Starting,
    Draining,
    EngineFailed,
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
