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
from aiochatstream.web.endpoint import EVENTS, JSON, Api
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

APIS = {
    api.name: api
    for api in (
        Api(
            "list_models",
            web.get,
            "/models",
            models.list_models,
            answers={JSON: response_models.ModelList},
            errors=(Starting, Draining),
        ),
        Api(
            "retrieve_model",
            web.get,
            r"/models/{model:[\s\S]+}",
            models.retrieve_model,
            answers={JSON: response_models.Model},
            errors=(ModelNotFound, Starting, Draining),
        ),
        Api(
            "chat_completions",
            web.post,
            "/chat/completions",
            chat.chat_completions,
            body=ChatCompletionRequest,
            answers={JSON: response_models.ChatCompletion, EVENTS: response_models.ChatCompletionChunk},
            errors=GENERATION_ERRORS,
        ),
        Api(
            "completions",
            web.post,
            "/completions",
            completions.completions,
            body=CompletionRequest,
            answers={JSON: response_models.Completion, EVENTS: response_models.CompletionChunk},
            errors=GENERATION_ERRORS,
        ),
        Api(
            "responses",
            web.post,
            "/responses",
            responses.responses,
            body=ResponseRequest,
            answers={JSON: response_object.Response, EVENTS: response_object.ResponseEvent},
            errors=GENERATION_ERRORS,
        ),
    )
}
