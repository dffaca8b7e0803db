"""The endpoint of chat completions."""

from __future__ import annotations

import time
import uuid
from typing import Any

from aiohttp import web

from aiochatstream.constraint import Constraint
from aiochatstream.engines import BaseEngine
from aiochatstream.prompts import ChatInput
from aiochatstream.prompts.tools import supports_tools
from aiochatstream.runtime.events import Ended, Text, Thinking, ToolCalls, Usage
from aiochatstream.web.openai.chat_request import ChatCompletionRequest, ChatMessage, NamedToolChoice
from aiochatstream.web.openai.endpoint_context import EndpointContext
from aiochatstream.web.openai.errors import openai_endpoint
from aiochatstream.web.openai.generation import ResponseBuilder, generate, sse
from aiochatstream.web.openai.logprobs import LogprobFormatter
from aiochatstream.web.openai.response_models import (
    AT_MAXIMUM_LENGTH,
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatFinish,
    ChatToolCall,
    ChoiceLogprobs,
    CompletionUsage,
    ContentLogprob,
    MessageDelta,
    ToolCallDelta,
    total_usage,
)
from aiochatstream.web.openai.tool_calls import (
    CallPart,
    NamedCallParser,
    OutputParser,
    Part,
    PlainTextParser,
    RequiredCallsParser,
    ToolCallParser,
    named_call_constraint,
    required_calls_constraint,
)
from aiochatstream.web.server import Server

NO_PARAMETERS = {"type": "object", "properties": {}}
"""Schema of a function without parameters, for chat templates."""


@openai_endpoint
async def chat_completions(server: Server, request: web.Request, context: EndpointContext) -> web.StreamResponse:
    """``POST /v1/chat/completions``: the next message of a chat."""
    body, owner = await context.read_request(server, request, ChatCompletionRequest)
    params: dict[str, Any] = {"constraint": select_constraint(body)}
    if body.logprobs:
        params["logprobs"] = body.top_logprobs or 0
    return await generate(
        server,
        request,
        ChatInput(
            [template_message(message) for message in body.messages],
            template_tools(body),
            continues=bool(body.continue_final_message),
        ),
        body.overrides_for(server.thinking_levels),
        ChatCompletionBuilder(body, context.served_name(server), server.engine),
        stream=bool(body.stream),
        owner=owner,
        count=body.n or 1,
        **params,
    )


def template_message(message: ChatMessage) -> dict[str, Any]:
    """Return ``message`` in the form that chat templates expect, with thoughts as ``reasoning_content``."""
    fields = message.model_dump(exclude_none=True, exclude={"refusal", "reasoning", "reasoning_content"})
    thoughts = {"reasoning_content": message.thoughts} if message.thoughts else {}
    return {"content": message.refusal or "", **fields, **thoughts}


def template_tools(body: ChatCompletionRequest) -> list[dict[str, Any]]:
    """Return the tools for the chat template; none if the model must not call any."""
    if body.tool_choice == "none":
        return []
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    for tool in tools:  # templates access the properties
        tool["function"]["parameters"] = tool["function"].get("parameters") or NO_PARAMETERS
    return tools


def select_constraint(body: ChatCompletionRequest) -> Constraint | None:
    """Return the constraint of the answer, by tool_choice or response_format."""
    functions = [tool.function for tool in body.tools or ()]
    if isinstance(body.tool_choice, NamedToolChoice):
        name = body.tool_choice.function.name
        return named_call_constraint(next(function for function in functions if function.name == name))
    if body.tool_choice == "required":
        return required_calls_constraint(functions, parallel=body.parallel_tool_calls is not False)
    return None if body.response_format is None else body.response_format.constraint


def select_parser(body: ChatCompletionRequest, *, text_may_be_call: bool) -> OutputParser:
    """Return a parser for one answer.

    :param text_may_be_call: False if the engine reads the calls itself.
    """
    if isinstance(body.tool_choice, NamedToolChoice):
        return NamedCallParser(body.tool_choice.function.name)
    if not body.tools or body.tool_choice == "none":
        return PlainTextParser()
    names, parallel = {tool.function.name for tool in body.tools}, body.parallel_tool_calls is not False
    if body.tool_choice == "required":
        return RequiredCallsParser(names, parallel=parallel)
    return ToolCallParser(names, parallel=parallel, text_may_be_call=text_may_be_call)


def reads_calls(engine: BaseEngine) -> bool:
    """Return True if ``engine`` reads calls of tools itself: its text then contains none.

    It does not if the chat template renders no tools: the prompt then describes them as text.
    """
    if engine.response_template is None or "tool_calls" not in engine.response_template["fields"]:
        return False
    return engine.tokenizer is None or supports_tools(engine.tokenizer)


class ChatChoiceBuilder:
    """Builder of a choice of a chat completion."""

    def __init__(self, index: int, parser: OutputParser, formatter: LogprobFormatter | None) -> None:
        self._index, self._parser, self._formatter = index, parser, formatter
        self._role_sent = False
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ChatToolCall] = []
        self._logprobs: list[ContentLogprob] = []
        self.usage = Usage(0, 0, 0)
        self._finish: ChatFinish = "stop"

    def add_text(self, text: Text) -> list[ChatChunkChoice]:
        """Add a piece of text; return its chunks."""
        parts = self._parser.feed(text.text)
        logprobs = None if self._formatter is None else self._formatter.for_chat(text.logprobs)
        return self._chunks(parts, logprobs)

    def add_thinking(self, thinking: Thinking) -> list[ChatChunkChoice]:
        """Add a piece of the thoughts; return its chunks."""
        self._thoughts.append(thinking.text)
        delta: MessageDelta = {"reasoning_content": thinking.text, "reasoning": thinking.text}
        return [*self._role_chunk(), self._chunk(delta, None)]

    def add_calls(self, calls: ToolCalls) -> list[ChatChunkChoice]:
        """Add calls of tools; return their chunks."""
        return self._chunks([part for call in calls.calls for part in self._parser.add_call(call)], None)

    def end(self, ended: Ended) -> list[ChatChunkChoice]:
        """End the choice; return its last chunks."""
        chunks = self._chunks(self._parser.close(), None)
        self.usage = ended.usage
        reason = self._parser.finish_reason if self._calls else "stop"
        self._finish = "length" if ended.finish_reason in AT_MAXIMUM_LENGTH else reason
        return [*chunks, *self._role_chunk(), self._chunk({}, None, self._finish)]

    def choice(self) -> ChatChoice:
        """Return the whole choice."""
        text = "".join(self._texts)
        message: AssistantMessage = {"role": "assistant", "content": text, "refusal": None}
        if self._thoughts:
            thoughts = "".join(self._thoughts)
            message |= {"reasoning_content": thoughts, "reasoning": thoughts}
        if self._calls:
            message |= {"content": text or None, "tool_calls": self._calls}
        return {
            "index": self._index,
            "message": message,
            "logprobs": None if self._formatter is None else {"content": self._logprobs, "refusal": None},
            "finish_reason": self._finish,
        }

    def _chunks(self, parts: list[Part], logprobs: list[ContentLogprob] | None) -> list[ChatChunkChoice]:
        deltas: list[MessageDelta] = [self._delta(part) for part in parts]
        if logprobs:
            self._logprobs += logprobs
            if not deltas:
                deltas = [{"content": ""}]
        if not deltas:
            return []
        first, *rest = deltas
        first_logprobs: ChoiceLogprobs | None = {"content": logprobs, "refusal": None} if logprobs else None
        return [*self._role_chunk(), self._chunk(first, first_logprobs), *(self._chunk(delta, None) for delta in rest)]

    def _delta(self, part: Part) -> MessageDelta:
        if isinstance(part, str):
            self._texts.append(part)
            return {"content": part}
        return {"tool_calls": [self._call_delta(part)]}

    def _call_delta(self, part: CallPart) -> ToolCallDelta:
        if part.name is None:
            self._calls[part.index]["function"]["arguments"] += part.arguments
            return {"index": part.index, "function": {"arguments": part.arguments}}
        call: ChatToolCall = {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        self._calls.append(call)
        return {**call, "index": part.index, "function": {"name": part.name, "arguments": part.arguments}}

    def _role_chunk(self) -> list[ChatChunkChoice]:
        if self._role_sent:
            return []
        self._role_sent = True
        return [self._chunk({"role": "assistant", "content": ""}, None)]

    def _chunk(
        self, delta: MessageDelta, logprobs: ChoiceLogprobs | None, finish: ChatFinish | None = None
    ) -> ChatChunkChoice:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


class ChatCompletionBuilder(ResponseBuilder):
    """Builder of a chat completion."""

    id_prefix = "chatcmpl-"

    def __init__(self, request: ChatCompletionRequest, model: str, engine: BaseEngine) -> None:
        if request.max_completion_tokens is not None:
            self.field_names = {**self.field_names, "max_new_tokens": "max_completion_tokens"}
        if request.tool_choice not in (None, "none", "auto"):
            self.field_names = {**self.field_names, "constraint": "tools"}
        self._model, self._created = model, int(time.time())
        self._include_usage = request.include_usage
        tokenizer = engine.tokenizer
        formatter = LogprobFormatter(tokenizer) if request.logprobs and tokenizer is not None else None
        text_may_be_call = not reads_calls(engine)
        self._choices = [
            ChatChoiceBuilder(index, select_parser(request, text_may_be_call=text_may_be_call), formatter)
            for index in range(request.n or 1)
        ]

    def add_text(self, index: int, text: Text) -> str:
        return "".join(map(self._event, self._choices[index].add_text(text)))

    def add_thinking(self, index: int, thinking: Thinking) -> str:
        return "".join(map(self._event, self._choices[index].add_thinking(thinking)))

    def add_calls(self, index: int, calls: ToolCalls) -> str:
        return "".join(map(self._event, self._choices[index].add_calls(calls)))

    def end_answer(self, index: int, ended: Ended) -> str:
        return "".join(map(self._event, self._choices[index].end(ended)))

    def last_events(self) -> str:
        usage = ""
        if self._include_usage:
            usage = sse(self._chunk([]) | {"usage": self._usage()})
        return f"{usage}data: [DONE]\n\n"

    def body(self) -> ChatCompletion:
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice.choice() for choice in self._choices],
            "usage": self._usage(),
        }

    def _usage(self) -> CompletionUsage:
        return total_usage([choice.usage for choice in self._choices], len(self._choices))

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
        return {**chunk, "usage": None} if self._include_usage else chunk
