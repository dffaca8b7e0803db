"""The endpoint of responses, for text and without state."""

from __future__ import annotations

import time
import uuid
from typing import Any

from aiohttp import web

from aiochatstream.errors import ChatStreamError
from aiochatstream.prompts import ChatInput
from aiochatstream.runtime.events import Ended, Text
from aiochatstream.web.json import dumps
from aiochatstream.web.openai.endpoint_context import EndpointContext
from aiochatstream.web.openai.errors import error_body, openai_endpoint
from aiochatstream.web.openai.generation import ResponseBuilder, generate
from aiochatstream.web.openai.logprobs import LogprobFormatter
from aiochatstream.web.openai.request_models import format_constraint
from aiochatstream.web.openai.response_models import ContentLogprob
from aiochatstream.web.openai.response_object import OutputMessage, OutputText, Response, ResponseStatus, ResponseUsage
from aiochatstream.web.openai.response_request import ResponseRequest
from aiochatstream.web.server import Server


@openai_endpoint
async def responses(server: Server, request: web.Request, context: EndpointContext) -> web.StreamResponse:
    """``POST /v1/responses``: the next message of a chat, as a response object. Nothing is stored."""
    body, owner = await context.read_request(server, request, ResponseRequest)
    text_format = None if body.text is None else body.text.format
    return await generate(
        server,
        request,
        ChatInput(body.messages),
        body.overrides_for(server.thinking_levels),
        ResponseObjectBuilder(body, context.served_name(server), server),
        stream=bool(body.stream),
        owner=owner,
        logprobs=body.logprobs,
        constraint=None if text_format is None else format_constraint(text_format.type, text_format.json_schema),
    )


class ResponseObjectBuilder(ResponseBuilder):
    """Builder of a response object: a message with a single text."""

    id_prefix = "resp_"

    def __init__(self, request: ResponseRequest, model: str, server: Server) -> None:
        self.field_names = {
            "max_new_tokens": "max_output_tokens",
            "constraint": "text.format",
            "logprobs": "top_logprobs",
        }
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self._request, self._model, self._created = request, model, int(time.time())
        self._temperature = server.params.temperature if request.temperature is None else request.temperature
        self._top_p = server.params.top_p if request.top_p is None else request.top_p
        tokenizer = server.engine.tokenizer
        self._formatter = None if request.logprobs is None or tokenizer is None else LogprobFormatter(tokenizer)
        self._texts: list[str] = []
        self._logprobs: list[ContentLogprob] = []
        self._status: ResponseStatus = "in_progress"
        self._usage: ResponseUsage | None = None
        self._events = 0

    def add_text(self, index: int, text: Text) -> str:
        first = self._begin()
        logprobs = [] if self._formatter is None else self._formatter.for_chat(text.logprobs)
        self._texts.append(text.text)
        self._logprobs += logprobs
        return first + self._part_event("response.output_text.delta", delta=text.text, logprobs=logprobs)

    def end_answer(self, index: int, ended: Ended) -> str:
        first = self._begin()
        self._status = "incomplete" if ended.finish_reason == "length" else "completed"
        usage = ended.usage
        self._usage = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return "".join(
            [
                first,
                self._part_event("response.output_text.done", text=self._part()["text"], logprobs=self._logprobs),
                self._part_event("response.content_part.done", part=self._part()),
                self._event("response.output_item.done", output_index=0, item=self._message()),
            ]
        )

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
            "output": [] if self._status == "in_progress" else [self._message()],
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

    def _begin(self) -> str:
        if self._events:
            return ""
        empty: OutputMessage = {**self._message(), "content": []}
        return "".join(
            [
                self._event("response.created", response=self.body()),
                self._event("response.in_progress", response=self.body()),
                self._event("response.output_item.added", output_index=0, item=empty),
                self._part_event("response.content_part.added", part=self._part()),
            ]
        )

    def _message(self) -> OutputMessage:
        return {
            "type": "message",
            "id": self._message_id,
            "role": "assistant",
            "status": self._status,
            "content": [self._part()],
        }

    def _part(self) -> OutputText:
        return {
            "type": "output_text",
            "text": "".join(self._texts),
            "annotations": [],
            "logprobs": self._logprobs,
        }

    def _part_event(self, event_type: str, **data: Any) -> str:
        return self._event(event_type, item_id=self._message_id, output_index=0, content_index=0, **data)

    def _event(self, event_type: str, **data: Any) -> str:
        event = {"type": event_type, "sequence_number": self._events, **data}
        self._events += 1
        return f"event: {event_type}\ndata: {dumps(event)}\n\n"
