"""The endpoints of OpenAI's API as a table."""

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
from aiochatstream.web.openai import answers, chat, completions, models, response_answers, responses
from aiochatstream.web.openai.chat_request import ChatCompletionRequest
from aiochatstream.web.openai.completion_request import CompletionRequest
from aiochatstream.web.openai.response_request import ResponseRequest

ANSWERING = (ModelNotFound, NoRecording, ContextLengthExceeded, TooManyRequests, Starting, Draining, EngineFailed)

ENDPOINTS = {
    api.name: api
    for api in (
        Endpoint(
            "list_models",
            web.get,
            "/models",
            models.list_models,
            responses={JSON: answers.ModelList},
            errors=(Starting, Draining),
        ),
        Endpoint(
            "retrieve_model",
            web.get,
            r"/models/{model:[\s\S]+}",
            models.retrieve_model,
            responses={JSON: answers.Model},
            errors=(ModelNotFound, Starting, Draining),
        ),
        Endpoint(
            "chat_completions",
            web.post,
            "/chat/completions",
            chat.chat_completions,
            body=ChatCompletionRequest,
            responses={JSON: answers.ChatCompletion, EVENTS: answers.ChatCompletionChunk},
            errors=ANSWERING,
        ),
        Endpoint(
            "completions",
            web.post,
            "/completions",
            completions.completions,
            body=CompletionRequest,
            responses={JSON: answers.Completion, EVENTS: answers.CompletionChunk},
            errors=ANSWERING,
        ),
        Endpoint(
            "responses",
            web.post,
            "/responses",
            responses.responses,
            body=ResponseRequest,
            responses={JSON: response_answers.Response, EVENTS: response_answers.ResponseEvent},
            errors=ANSWERING,
        ),
    )
}
