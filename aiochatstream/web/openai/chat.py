"""Chat completions."""

from __future__ import annotations

import time
import uuid
from typing import Any

from aiohttp import web

from aiochatstream.constraint import Constraint
from aiochatstream.prompts import ChatInput
from aiochatstream.runtime.events import Ended, Text, Usage
from aiochatstream.web.openai.chat_request import ChatCompletionRequest, ChatMessage, NamedTool
from aiochatstream.web.openai.endpoint_context import Service
from aiochatstream.web.openai.errors import answers_openai_errors
from aiochatstream.web.openai.generation import Answer, answer_with, sse
from aiochatstream.web.openai.logprobs import LogprobWriter
from aiochatstream.web.openai.response_models import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatFinish,
    ChoiceLogprobs,
    ContentLogprob,
    MessageDelta,
    ToolCall,
    ToolCallDelta,
    usage_of,
)
from aiochatstream.web.openai.tool_calls import (
    CallPart,
    CallReader,
    OneCallReader,
    Part,
    PlainReader,
    Reader,
    WholeReader,
    one_call,
    some_calls,
)
from aiochatstream.web.server import Server

NO_PARAMETERS = {"type": "object", "properties": {}}
"""The schema of a function that has none."""


@answers_openai_errors
async def chat_completions(server: Server, request: web.Request, service: Service) -> web.StreamResponse:
    """``POST /v1/chat/completions``: the next message of a chat."""
    asked, owner = await service.read(server, request, ChatCompletionRequest)
    more: dict[str, Any] = {"constraint": constraint_of(asked)}
    if asked.logprobs:
        more["logprobs"] = asked.top_logprobs or 0
    return await answer_with(
        server,
        request,
        ChatInput(
            [told(message) for message in asked.messages],
            tools_of(asked),
            continues=bool(asked.continue_final_message),
        ),
        asked.overrides,
        ChatAnswer(asked, service.name(server), server.engine.tokenizer),
        stream=bool(asked.stream),
        owner=owner,
        count=asked.n or 1,
        **more,
    )


def told(message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates know it."""
    return {"content": message.refusal or "", **message.model_dump(exclude_none=True, exclude={"refusal"})}


def tools_of(asked: ChatCompletionRequest) -> list[dict[str, Any]]:
    """The tools that the model is told of."""
    if asked.tool_choice == "none":
        return []
    tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()]
    for tool in tools:  # templates read the properties
        tool["function"]["parameters"] = tool["function"].get("parameters") or NO_PARAMETERS
    return tools


def constraint_of(asked: ChatCompletionRequest) -> Constraint | None:
    """The form that the answer must have."""
    functions = [tool.function for tool in asked.tools or ()]
    if isinstance(asked.tool_choice, NamedTool):
        name = asked.tool_choice.function.name
        return one_call(next(function for function in functions if function.name == name))
    if asked.tool_choice == "required":
        return some_calls(functions, parallel=asked.parallel_tool_calls is not False)
    return None if asked.response_format is None else asked.response_format.constraint


def reader_of(asked: ChatCompletionRequest) -> Reader:
    """What reads the answer."""
    if isinstance(asked.tool_choice, NamedTool):
        return OneCallReader(asked.tool_choice.function.name)
    if not asked.tools or asked.tool_choice == "none":
        return PlainReader()
    reader = WholeReader if asked.tool_choice == "required" else CallReader
    parallel = asked.parallel_tool_calls is not False
    return reader({tool.function.name for tool in asked.tools}, parallel=parallel)


class Choice:
    """One answer in the making."""

    def __init__(self, index: int, reader: Reader, logprobs: LogprobWriter | None) -> None:
        self._index, self._reader, self._logprobs = index, reader, logprobs
        self._began = False
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []
        self._tokens: list[ContentLogprob] = []
        self.usage = Usage(0, 0, 0)
        self._finish: ChatFinish = "stop"

    def take(self, text: Text) -> list[ChatChunkChoice]:
        """More of it, as a stream's chunks tell of it."""
        parts = self._reader.push(text.text)
        logprobs = None if self._logprobs is None else self._logprobs.of_chat(text.logprobs)
        return self._chunks(parts, logprobs)

    def end(self, ended: Ended) -> list[ChatChunkChoice]:
        """Its end."""
        chunks = self._chunks(self._reader.end(), None)
        self.usage = ended.usage
        called = self._reader.finish_reason if self._calls else "stop"
        self._finish = "length" if ended.finish_reason == "length" else called
        return [*chunks, *self._begin(), self._chunk({}, None, self._finish)]

    def whole(self) -> ChatChoice:
        """All of it."""
        text = "".join(self._texts)
        message: AssistantMessage = {"role": "assistant", "content": text, "refusal": None}
        if self._calls:
            message |= {"content": text or None, "tool_calls": self._calls}
        return {
            "index": self._index,
            "message": message,
            "logprobs": None if self._logprobs is None else {"content": self._tokens, "refusal": None},
            "finish_reason": self._finish,
        }

    def _chunks(self, parts: list[Part], logprobs: list[ContentLogprob] | None) -> list[ChatChunkChoice]:
        deltas: list[MessageDelta] = [self._delta(part) for part in parts]
        if logprobs:
            self._tokens += logprobs
            if not deltas:
                deltas = [{"content": ""}]
        if not deltas:
            return []
        told: list[ChoiceLogprobs | None] = [None] * len(deltas)
        told[0] = {"content": logprobs, "refusal": None} if logprobs else None
        return [*self._begin(), *(self._chunk(*one) for one in zip(deltas, told, strict=True))]

    def _delta(self, part: Part) -> MessageDelta:
        if isinstance(part, str):
            self._texts.append(part)
            return {"content": part}
        return {"tool_calls": [self._call_delta(part)]}

    def _call_delta(self, part: CallPart) -> ToolCallDelta:
        if part.name is None:
            self._calls[part.index]["function"]["arguments"] += part.arguments
            return {"index": part.index, "function": {"arguments": part.arguments}}
        call: ToolCall = {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        self._calls.append(call)
        return {**call, "index": part.index, "function": {"name": part.name, "arguments": part.arguments}}

    def _begin(self) -> list[ChatChunkChoice]:
        if self._began:
            return []
        self._began = True
        return [self._chunk({"role": "assistant", "content": ""}, None)]

    def _chunk(
        self, delta: MessageDelta, logprobs: ChoiceLogprobs | None, finish: ChatFinish | None = None
    ) -> ChatChunkChoice:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


class ChatAnswer(Answer):
    """A chat completion in the making."""

    prefix = "chatcmpl-"

    def __init__(self, asked: ChatCompletionRequest, model: str, tokenizer: Any) -> None:
        if asked.max_completion_tokens is not None:
            self.names = {**self.names, "max_new_tokens": "max_completion_tokens"}
        if asked.tool_choice not in (None, "none", "auto"):
            self.names = {**self.names, "constraint": "tools"}
        self._model, self._created = model, int(time.time())
        self._tells_usage = asked.include_usage
        logprobs = LogprobWriter(tokenizer) if asked.logprobs and tokenizer is not None else None
        self._choices = [Choice(index, reader_of(asked), logprobs) for index in range(asked.n or 1)]

    def take(self, index: int, text: Text) -> str:
        return "".join(map(self._event, self._choices[index].take(text)))

    def end(self, index: int, ended: Ended) -> str:
        return "".join(map(self._event, self._choices[index].end(ended)))

    def last(self) -> str:
        usage = ""
        if self._tells_usage:
            usage = sse(self._chunk([]) | {"usage": usage_of([one.usage for one in self._choices], len(self._choices))})
        return f"{usage}data: [DONE]\n\n"

    def whole(self) -> ChatCompletion:
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice.whole() for choice in self._choices],
            "usage": usage_of([choice.usage for choice in self._choices], len(self._choices)),
        }

    def _event(self, choice: ChatChunkChoice) -> str:
        return sse(self._chunk([choice]))

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
        chunk: ChatCompletionChunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        return {**chunk, "usage": None} if self._tells_usage else chunk
