"""The endpoints as a table: what each is called, and where it is."""

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
    NoRecording,
    NotFound,
    NothingToContinue,
    NothingToRegenerate,
    NotRunningHere,
    Starting,
    TooLarge,
    TooManyRequests,
)
from aiochatstream.web import request_models as schemas
from aiochatstream.web import response_models as answers
from aiochatstream.web.endpoint import EVENTS, JSON, TEXT, Api, BoundHandler, bind, mount
from aiochatstream.web.endpoints import chat as handlers
from aiochatstream.web.endpoints import docs as documents
from aiochatstream.web.endpoints import feedback, generation_params, history, page
from aiochatstream.web.endpoints import status as inspection
from aiochatstream.web.openapi.document import CHAT
from aiochatstream.web.server import Server

NOT_NOW = (TooManyRequests, Starting, Draining)

CHANGING = (ConversationBusy, ConversationChanged, AnswerElsewhere)

TALKING = (NotFound, NoRecording, NothingToRegenerate, NothingToContinue, TooLarge, *CHANGING, *NOT_NOW, EngineFailed)

APIS = {
    api.name: api
    for api in (
        Api(
            "chat_stream",
            web.post,
            "/chat_stream",
            handlers.chat_stream,
            body=schemas.ChatRequest,
            answers={TEXT: str, EVENTS: str, JSON: answers.ChatAnswer},
            errors=TALKING,
        ),
        Api(
            "stop",
            web.post,
            "/chat_stream/stop",
            handlers.stop,
            body=schemas.ConversationRef,
            answers={JSON: answers.Stopped},
            errors=(NotRunningHere,),
        ),
        Api(
            "clear_context",
            web.post,
            "/clear_context",
            handlers.clear_context,
            body=schemas.ConversationRef,
            answers={JSON: answers.Done},
            errors=(ConversationBusy,),
        ),
        Api(
            "history",
            web.get,
            "/history",
            history.history,
            query=schemas.HistoryQuery,
            answers={JSON: answers.History},
            errors=(AnswerElsewhere,),
        ),
        Api(
            "delete_message",
            web.delete,
            "/history/{message_id}",
            history.delete_message,
            query=schemas.HistoryChange,
            answers={JSON: answers.Changed},
            errors=(NotFound, *CHANGING),
        ),
        Api(
            "export_conversation",
            web.get,
            "/export",
            history.export_conversation,
            query=schemas.ConversationRef,
            answers={JSON: ExportedConversation},
            errors=(AnswerElsewhere,),
        ),
        Api(
            "import_conversation",
            web.post,
            "/import",
            history.import_conversation,
            body=schemas.ImportRequest,
            answers={JSON: answers.Changed},
            errors=CHANGING,
        ),
        Api(
            "commit",
            web.post,
            "/commit",
            history.commit,
            body=schemas.CommitRequest,
            answers={JSON: answers.Changed},
            errors=CHANGING,
        ),
        Api(
            "get_prompt",
            web.get,
            "/get_prompt",
            inspection.get_prompt,
            query=schemas.ConversationRef,
            answers={JSON: answers.PromptText},
            errors=(AnswerElsewhere, TooLarge, *NOT_NOW),
        ),
        Api(
            "set_feedback",
            web.post,
            "/set_feedback",
            feedback.set_feedback,
            body=schemas.FeedbackRequest,
            answers={JSON: answers.FeedbackTaken},
            errors=(NotFound, AnswerElsewhere),
        ),
        Api(
            "set_generation_params",
            web.post,
            "/set_generation_params",
            generation_params.set_generation_params,
            body=schemas.GenerationParamsChange,
            answers={JSON: answers.ParamsAnswer},
        ),
        Api(
            "get_generation_params",
            web.get,
            "/get_generation_params",
            generation_params.get_generation_params,
            answers={JSON: answers.ParamsAnswer},
        ),
        Api("get_load", web.get, "/get_load", inspection.get_load, answers={JSON: answers.Load}),
        Api(
            "get_resource_usage",
            web.get,
            "/get_resource_usage",
            inspection.get_resource_usage,
            answers={JSON: answers.ResourceUsage},
        ),
        Api("healthz", web.get, "/healthz", inspection.healthz, answers={JSON: answers.Status}),
        Api(
            "readyz",
            web.get,
            "/readyz",
            inspection.readyz,
            answers={JSON: answers.Status},
            errors=NOT_NOW,
            parts={"/health": inspection.readyz},
        ),
        Api("metrics", web.get, "/metrics", inspection.metrics, answers={TEXT: str}, errors=(Forbidden,)),
        Api("openapi", web.get, "/openapi.json", documents.openapi, answers={JSON: dict[str, Any]}),
        Api("docs", web.get, "/docs", documents.docs, answers={"text/html": str}),
        Api("webui_index", web.get, "/", page.webui_index, answers={"text/html": str}, parts=page.PARTS),
    )
}


def routes(
    server: Server,
    include: Collection[str] | None = None,
    exclude: Collection[str] | None = None,
    prefix: str = "",
) -> list[web.RouteDef]:
    """The chosen endpoints of ``server``, all by default. Raises ValueError for unknown names and other prefixes."""
    if include is not None and exclude is not None:
        raise ValueError("include and exclude: give one of the two.")
    chosen = APIS.keys() if include is None else _names("include", include)
    left_out = frozenset() if exclude is None else _names("exclude", exclude)
    chosen_apis = (api for api in APIS.values() if api.name in chosen and api.name not in left_out)
    return mount(chosen_apis, server, prefix, CHAT)


def handler(server: Server, name: str) -> BoundHandler:
    """Return the aiohttp handler of an endpoint of ``server``. Raises ValueError for an unknown name."""
    if name not in APIS:
        raise ValueError(f"unknown endpoint {name!r}; choose from {', '.join(APIS)}.")
    return bind(APIS[name], APIS[name].handler, server, CHAT)


def _names(where: str, names: Any) -> frozenset[str]:
    if not isinstance(names, list | tuple | set | frozenset):
        raise ValueError(f"{where}: must be a list of API names, not {names!r}.")
    for name in names:
        if not isinstance(name, str) or name not in APIS:
            raise ValueError(f"{where}: {name!r} is no API name; they are {', '.join(APIS)}.")
    return frozenset(names)
