"""The route table of the chat API."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from aiohttp import web

from aiochatstream.conversations.export import ExportedConversation
from aiochatstream.errors import (
    AnswerElsewhere,
    ConversationBusy,
    ConversationChanged,
    Draining,
    EngineFailed,
    Forbidden,
    LoopDetected,
    NoRecording,
    NotFound,
    NothingToContinue,
    NothingToRegenerate,
    NotRunningHere,
    Starting,
    TooLarge,
    TooManyRequests,
    UpstreamFailed,
    UpstreamUnavailable,
)
from aiochatstream.web import request_models, response_models
from aiochatstream.web.endpoint import EVENTS, JSON, TEXT, BoundHandler, Endpoint, bind, mount
from aiochatstream.web.endpoints import chat, docs, feedback, generation_params, history, page, status
from aiochatstream.web.openapi.document import CHAT
from aiochatstream.web.server import Server

UNAVAILABLE = (TooManyRequests, Starting, Draining, UpstreamUnavailable)

CONFLICTS = (ConversationBusy, ConversationChanged, AnswerElsewhere)

CHAT_ERRORS = (
    NotFound,
    NoRecording,
    NothingToRegenerate,
    NothingToContinue,
    TooLarge,
    *CONFLICTS,
    *UNAVAILABLE,
    EngineFailed,
    LoopDetected,
    UpstreamFailed,
)

ENDPOINTS = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint(
            "chat_stream",
            web.post,
            "/chat_stream",
            chat.chat_stream,
            body=request_models.ChatRequest,
            responses={TEXT: str, EVENTS: str, JSON: response_models.ChatResponse},
            errors=CHAT_ERRORS,
        ),
        Endpoint(
            "stop",
            web.post,
            "/chat_stream/stop",
            chat.stop,
            body=request_models.ConversationRef,
            responses={JSON: response_models.StopResponse},
            errors=(NotRunningHere,),
        ),
        Endpoint(
            "clear_context",
            web.post,
            "/clear_context",
            chat.clear_context,
            body=request_models.ConversationRef,
            responses={JSON: response_models.SuccessResponse},
            errors=(ConversationBusy,),
        ),
        Endpoint(
            "history",
            web.get,
            "/history",
            history.history,
            query=request_models.HistoryQuery,
            responses={JSON: response_models.HistoryResponse},
            errors=(AnswerElsewhere,),
        ),
        Endpoint(
            "delete_message",
            web.delete,
            "/history/{message_id}",
            history.delete_message,
            query=request_models.DeleteMessageQuery,
            responses={JSON: response_models.ChangeResponse},
            errors=(NotFound, *CONFLICTS),
        ),
        Endpoint(
            "export_conversation",
            web.get,
            "/export",
            history.export_conversation,
            query=request_models.ConversationRef,
            responses={JSON: ExportedConversation},
            errors=(AnswerElsewhere,),
        ),
        Endpoint(
            "import_conversation",
            web.post,
            "/import",
            history.import_conversation,
            body=request_models.ImportRequest,
            responses={JSON: response_models.ChangeResponse},
            errors=CONFLICTS,
        ),
        Endpoint(
            "commit",
            web.post,
            "/commit",
            history.commit,
            body=request_models.CommitRequest,
            responses={JSON: response_models.ChangeResponse},
            errors=CONFLICTS,
        ),
        Endpoint(
            "get_prompt",
            web.get,
            "/get_prompt",
            status.get_prompt,
            query=request_models.ConversationRef,
            responses={JSON: response_models.PromptResponse},
            errors=(AnswerElsewhere, TooLarge, *UNAVAILABLE),
        ),
        Endpoint(
            "set_feedback",
            web.post,
            "/set_feedback",
            feedback.set_feedback,
            body=request_models.FeedbackRequest,
            responses={JSON: response_models.FeedbackResponse},
            errors=(NotFound, AnswerElsewhere),
        ),
        Endpoint(
            "set_generation_params",
            web.post,
            "/set_generation_params",
            generation_params.set_generation_params,
            body=request_models.GenerationParamsChange,
            responses={JSON: response_models.GenerationParamsResponse},
        ),
        Endpoint(
            "get_generation_params",
            web.get,
            "/get_generation_params",
            generation_params.get_generation_params,
            responses={JSON: response_models.GenerationParamsResponse},
        ),
        Endpoint("get_load", web.get, "/get_load", status.get_load, responses={JSON: response_models.LoadResponse}),
        Endpoint(
            "get_resource_usage",
            web.get,
            "/get_resource_usage",
            status.get_resource_usage,
            responses={JSON: response_models.ResourceUsageResponse},
        ),
        Endpoint("healthz", web.get, "/healthz", status.healthz, responses={JSON: response_models.StatusResponse}),
        Endpoint(
            "readyz",
            web.get,
            "/readyz",
            status.readyz,
            responses={JSON: response_models.StatusResponse},
            errors=UNAVAILABLE,
            parts={"/health": status.readyz},
        ),
        Endpoint("metrics", web.get, "/metrics", status.metrics, responses={TEXT: str}, errors=(Forbidden,)),
        Endpoint("openapi", web.get, "/openapi.json", docs.openapi, responses={JSON: dict[str, Any]}),
        Endpoint("docs", web.get, "/docs", docs.docs, responses={"text/html": str}),
        Endpoint("webui_index", web.get, "/", page.webui_index, responses={"text/html": str}, parts=page.PARTS),
    )
}


def routes(
    server: Server,
    include: Collection[str] | None = None,
    exclude: Collection[str] | None = None,
    prefix: str = "",
) -> list[web.RouteDef]:
    """Return routes of the selected endpoints of ``server``; by default, of all.

    Raise ValueError for unknown names and invalid prefixes.
    """
    if include is not None and exclude is not None:
        raise ValueError("include: cannot be used together with exclude.")
    included = ENDPOINTS.keys() if include is None else _check_names("include", include)
    excluded = frozenset() if exclude is None else _check_names("exclude", exclude)
    selected = (endpoint for name, endpoint in ENDPOINTS.items() if name in included and name not in excluded)
    return mount(selected, server, prefix, CHAT)


def handler(server: Server, name: str) -> BoundHandler:
    """Return the aiohttp handler of an endpoint of ``server``. Raise ValueError for an unknown name."""
    if name not in ENDPOINTS:
        raise ValueError(f"unknown endpoint {name!r}; choose from {', '.join(ENDPOINTS)}.")
    return bind(ENDPOINTS[name], ENDPOINTS[name].handler, server, CHAT)


def _check_names(option: str, names: Any) -> frozenset[str]:
    if not isinstance(names, list | tuple | set | frozenset):
        raise ValueError(f"{option}: must be a list of endpoint names, not {names!r}.")
    for name in names:
        if not isinstance(name, str) or name not in ENDPOINTS:
            raise ValueError(f"{option}: unknown endpoint {name!r}; choose from {', '.join(ENDPOINTS)}.")
    return frozenset(names)
