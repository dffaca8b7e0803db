"""Responses: OpenAI's newer shape of a chat, here without state and for text."""

from __future__ import annotations

import time
import uuid
from typing import Any

from aiohttp import web

from aiochatstream.errors import ChatStreamError
from aiochatstream.prompts import ChatInput
from aiochatstream.runtime.events import Ended, Text
from aiochatstream.web.json import dumps
from aiochatstream.web.openai.endpoint_context import Service
from aiochatstream.web.openai.errors import answers_openai_errors, error_body
from aiochatstream.web.openai.generation import Answer, answer_with
from aiochatstream.web.openai.logprobs import LogprobWriter
from aiochatstream.web.openai.request_models import constraint_of
from aiochatstream.web.openai.response_models import ContentLogprob
from aiochatstream.web.openai.response_object import OutputMessage, OutputText, Response, ResponseUsage, Status
from aiochatstream.web.openai.response_request import ResponseRequest
from aiochatstream.web.server import Server


@answers_openai_errors
async def responses(server: Server, request: web.Request, service: Service) -> web.StreamResponse:
    """``POST /v1/responses``: the next message of a chat, as a response. Nothing is kept of it."""
    asked, owner = await service.read(server, request, ResponseRequest)
    form = None if asked.text is None else asked.text.format
    return await answer_with(
        server,
        request,
        ChatInput(asked.messages),
        asked.overrides,
        ResponseAnswer(asked, service.name(server), server),
        stream=bool(asked.stream),
        owner=owner,
        logprobs=asked.logprobs,
        constraint=None if form is None else constraint_of(form.type, form.json_schema),
    )


class ResponseAnswer(Answer):
    """A response in the making: one message, of one text."""

    prefix = "resp_"

    def __init__(self, asked: ResponseRequest, model: str, server: Server) -> None:
        self.names = {"max_new_tokens": "max_output_tokens", "constraint": "text.format", "logprobs": "top_logprobs"}
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self._asked, self._model, self._created = asked, model, int(time.time())
        self._temperature = server.params.temperature if asked.temperature is None else asked.temperature
        self._top_p = server.params.top_p if asked.top_p is None else asked.top_p
        tokenizer = server.engine.tokenizer
        self._writer = None if asked.logprobs is None or tokenizer is None else LogprobWriter(tokenizer)
        self._texts: list[str] = []
        self._logprobs: list[ContentLogprob] = []
        self._status: Status = "in_progress"
        self._usage: ResponseUsage | None = None
        self._events = 0

    def take(self, index: int, text: Text) -> str:
        begun = self._begin()
        logprobs = [] if self._writer is None else self._writer.of_chat(text.logprobs)
        self._texts.append(text.text)
        self._logprobs += logprobs
        return begun + self._of_part("response.output_text.delta", delta=text.text, logprobs=logprobs)

    def end(self, index: int, ended: Ended) -> str:
        begun = self._begin()
        self._status = "incomplete" if ended.finish_reason == "length" else "completed"
        used = ended.usage
        self._usage = {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": used.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used.prompt_tokens + used.completion_tokens,
        }
        return "".join(
            [
                begun,
                self._of_part("response.output_text.done", text=self._part()["text"], logprobs=self._logprobs),
                self._of_part("response.content_part.done", part=self._part()),
                self._event("response.output_item.done", output_index=0, item=self._message()),
            ]
        )

    def last(self) -> str:
        return self._event(f"response.{self._status}", response=self.whole())

    def failed(self, error: ChatStreamError) -> str:
        """The event of responses' own, with the key that clients of all endpoints look for."""
        told = error_body(error)["error"]
        details = {"code": told["code"], "message": told["message"], "param": told["param"]}
        return self._event("error", **details, error=told)

    def whole(self) -> Response:
        form = None if self._asked.text is None else self._asked.text.format
        told = {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "instructions": self._asked.instructions,
            "max_output_tokens": self._asked.max_output_tokens,
            "metadata": self._asked.metadata or {},
            "model": self._model,
            "output": [] if self._status == "in_progress" else [self._message()],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self._temperature,
            "text": {"format": told},
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
                self._event("response.created", response=self.whole()),
                self._event("response.in_progress", response=self.whole()),
                self._event("response.output_item.added", output_index=0, item=empty),
                self._of_part("response.content_part.added", part=self._part()),
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

    def _of_part(self, kind: str, **data: Any) -> str:
        return self._event(kind, item_id=self._message_id, output_index=0, content_index=0, **data)

    def _event(self, kind: str, **data: Any) -> str:
        event = {"type": kind, "sequence_number": self._events, **data}
        self._events += 1
        return f"event: {kind}\ndata: {dumps(event)}\n\n"
