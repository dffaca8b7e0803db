"""The endpoint of responses, for text and without state."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from aiohttp import web

from aiochatstream.errors import ChatStreamError
from aiochatstream.prompts import ChatInput
from aiochatstream.runtime.events import Ended, Text, Thinking
from aiochatstream.web.json import dumps
from aiochatstream.web.openai.endpoint_context import EndpointContext
from aiochatstream.web.openai.errors import error_body, openai_endpoint
from aiochatstream.web.openai.generation import ResponseBuilder, generate
from aiochatstream.web.openai.logprobs import LogprobFormatter
from aiochatstream.web.openai.relay import is_relayed, relay
from aiochatstream.web.openai.request_models import format_constraint
from aiochatstream.web.openai.response_models import AT_MAXIMUM_LENGTH, ContentLogprob
from aiochatstream.web.openai.response_object import (
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Response,
    ResponseStatus,
    ResponseUsage,
)
from aiochatstream.web.openai.response_request import ResponseRequest
from aiochatstream.web.server import Server


@openai_endpoint
async def responses(server: Server, request: web.Request, context: EndpointContext) -> web.StreamResponse:
    """``POST /v1/responses``: the next message of a chat, as a response object. Nothing is stored."""
    received = await context.receive(server, request)
    if is_relayed(received.server):
        return await relay(received, "/v1/responses")
    body, server = received.parse(ResponseRequest), received.server
    text_format = None if body.text is None else body.text.format
    return await generate(
        server,
        request,
        ChatInput(body.messages),
        body.overrides_for(server.thinking_levels),
        ResponseObjectBuilder(body, received.model, server),
        stream=bool(body.stream),
        owner=received.owner_of(body.cache_salt),
        logprobs=body.logprobs,
        constraint=None if text_format is None else format_constraint(text_format.type, text_format.json_schema),
    )


class TextItem(ABC):
    """Item of the output with a single text.

    :param index: index in the output.
    """

    kind: ClassVar[str]
    """Name of the text in events."""
    id_prefix: ClassVar[str]

    def __init__(self, index: int) -> None:
        self.index, self.id = index, f"{self.id_prefix}{uuid.uuid4().hex}"
        self.status: ResponseStatus = "in_progress"
        self.logprobs: list[ContentLogprob] = []
        self._texts: list[str] = []

    def add(self, text: str, logprobs: list[ContentLogprob]) -> None:
        """Add a piece of the text."""
        self._texts.append(text)
        self.logprobs += logprobs

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    def logprobs_field(self, logprobs: list[ContentLogprob]) -> dict[str, list[ContentLogprob]]:
        """Return the field of an event with ``logprobs``; none if the item has no logprobs."""
        return {}

    @abstractmethod
    def part(self) -> OutputText | ReasoningText:
        """Return the text as a content part."""

    @abstractmethod
    def item(self) -> OutputItem:
        """Return the item as JSON."""


class MessageItem(TextItem):
    """The answer."""

    kind = "output_text"
    id_prefix = "msg_"

    def logprobs_field(self, logprobs: list[ContentLogprob]) -> dict[str, list[ContentLogprob]]:
        return {"logprobs": logprobs}

    def part(self) -> OutputText:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}

    def item(self) -> OutputMessage:
        content = [self.part()]
        return {"type": "message", "id": self.id, "role": "assistant", "status": self.status, "content": content}


class ThoughtItem(TextItem):
    """The thoughts before the answer."""

    kind = "reasoning_text"
    id_prefix = "rs_"

    def part(self) -> ReasoningText:
        return {"type": "reasoning_text", "text": self.text}

    def item(self) -> ReasoningItem:
        return {"type": "reasoning", "id": self.id, "status": self.status, "summary": [], "content": [self.part()]}


class ResponseObjectBuilder(ResponseBuilder):
    """Builder of a response object: thoughts, if there are any, and a message."""

    id_prefix = "resp_"

    def __init__(self, request: ResponseRequest, model: str, server: Server) -> None:
        self.field_names = {
            "max_new_tokens": "max_output_tokens",
            "constraint": "text.format",
            "logprobs": "top_logprobs",
        }
        self._request, self._model, self._created = request, model, int(time.time())
        self._temperature = server.params.temperature if request.temperature is None else request.temperature
        self._top_p = server.params.top_p if request.top_p is None else request.top_p
        tokenizer = server.engine.tokenizer
        self._formatter = None if request.logprobs is None or tokenizer is None else LogprobFormatter(tokenizer)
        self._items: list[TextItem] = []
        self._status: ResponseStatus = "in_progress"
        self._usage: ResponseUsage | None = None
        self._events = 0

    def add_text(self, index: int, text: Text) -> str:
        logprobs = [] if self._formatter is None else self._formatter.for_chat(text.logprobs)
        return self._add(MessageItem, text.text, logprobs)

    def add_thinking(self, index: int, thinking: Thinking) -> str:
        return self._add(ThoughtItem, thinking.text, [])

    def end_answer(self, index: int, ended: Ended) -> str:
        events = "" if self._items else self._begin_item(MessageItem)
        self._status = "incomplete" if ended.finish_reason in AT_MAXIMUM_LENGTH else "completed"
        usage = ended.usage
        self._usage = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return events + self._end_item(self._status)

    def last_events(self) -> str:
        return self._event(f"response.{self._status}", response=self.body())

    def failure_event(self, error: ChatStreamError) -> str:
        """Return the error event of responses, which also contains the error object of the other endpoints."""
        detail = error_body(error)["error"]
        return self._event("error", code=detail["code"], message=detail["message"], param=detail["param"], error=detail)

    def body(self) -> Response:
        text_format = None if self._request.text is None else self._request.text.format
        format_ = {"type": "text"} if text_format is None else text_format.model_dump(by_alias=True, exclude_none=True)
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "instructions": self._request.instructions,
            "max_output_tokens": self._request.max_output_tokens,
            "metadata": self._request.metadata or {},
            "model": self._model,
            "output": [] if self._status == "in_progress" else [item.item() for item in self._items],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self._temperature,
            "text": {"format": format_},
            "tool_choice": "none",
            "tools": [],
            "top_p": self._top_p,
            "truncation": "disabled",
            "usage": self._usage,
        }

    def _add(self, kind: type[TextItem], text: str, logprobs: list[ContentLogprob]) -> str:
        """Add a piece of text to the last item; if that is of another kind, begin a new one. Return the events."""
        events = "" if self._items and isinstance(self._items[-1], kind) else self._begin_item(kind)
        item = self._items[-1]
        item.add(text, logprobs)
        delta = self._part_event(f"response.{kind.kind}.delta", delta=text, **item.logprobs_field(logprobs))
        return events + delta

    def _begin_item(self, kind: type[TextItem]) -> str:
        if self._items:
            events = self._end_item("completed")
        else:
            created = self._event("response.created", response=self.body())
            events = created + self._event("response.in_progress", response=self.body())
        item = kind(len(self._items))
        self._items.append(item)
        empty = {**item.item(), "content": []}
        return "".join(
            [
                events,
                self._event("response.output_item.added", output_index=item.index, item=empty),
                self._part_event("response.content_part.added", part=item.part()),
            ]
        )

    def _end_item(self, status: ResponseStatus) -> str:
        item = self._items[-1]
        item.status = status
        done, logprobs = f"response.{item.kind}.done", item.logprobs_field(item.logprobs)
        return "".join(
            [
                self._part_event(done, text=item.text, **logprobs),
                self._part_event("response.content_part.done", part=item.part()),
                self._event("response.output_item.done", output_index=item.index, item=item.item()),
            ]
        )

    def _part_event(self, event_type: str, **data: Any) -> str:
        """Return an event about the text of the last item."""
        item = self._items[-1]
        return self._event(event_type, item_id=item.id, output_index=item.index, content_index=0, **data)

    def _event(self, event_type: str, **data: Any) -> str:
        event = {"type": event_type, "sequence_number": self._events, **data}
        self._events += 1
        return f"event: {event_type}\ndata: {dumps(event)}\n\n"
