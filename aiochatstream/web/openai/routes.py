"""The endpoints of OpenAI's API as a table, and their mounting."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from aiohttp import web

from aiochatstream.web.api import Api
from aiochatstream.web.openai import answers, chat, completions, models, response_answers, responses
from aiochatstream.web.openai.chat_request import ChatRequest
from aiochatstream.web.openai.completion_request import CompletionRequest
from aiochatstream.web.openai.response_request import ResponseRequest
from aiochatstream.web.openai.service import Service

if TYPE_CHECKING:
    from aiochatstream.chat_stream import ChatStream

EVENTS = "text/event-stream"

APIS = (
    Api("list_models", web.get, "/models", models.list_models, answers={"application/json": answers.ModelList}),
    Api(
        "retrieve_model",
        web.get,
        "/models/{model:.+}",
        models.retrieve_model,
        answers={"application/json": answers.Model},
    ),
    Api(
        "chat_completions",
        web.post,
        "/chat/completions",
        chat.chat_completions,
        ChatRequest,
        answers={"application/json": answers.ChatCompletion, EVENTS: answers.ChatCompletionChunk},
    ),
    Api(
        "completions",
        web.post,
        "/completions",
        completions.completions,
        CompletionRequest,
        answers={"application/json": answers.Completion, EVENTS: answers.CompletionChunk},
    ),
    Api(
        "responses",
        web.post,
        "/responses",
        responses.responses,
        ResponseRequest,
        answers={"application/json": response_answers.Response, EVENTS: response_answers.ResponseEvent},
    ),
)


def routes(server: ChatStream, service: Service, prefix: str) -> list[web.RouteDef]:
    """The endpoints, each after ``prefix``. Raises ValueError for another kind of prefix."""
    if prefix and not (prefix.startswith("/") and not prefix.endswith("/")):
        raise ValueError(f"prefix: must begin with a slash and not end with one, not {prefix!r}.")
    return [api.route(prefix + api.path, functools.partial(api.handler, server, service=service)) for api in APIS]
