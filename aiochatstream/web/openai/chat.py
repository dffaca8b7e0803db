"""The endpoint of chat completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from aiochatstream.constraint import Constraint
from aiochatstream.engines import BaseEngine
from aiochatstream.prompts import ChatInput
from aiochatstream.prompts.tools import supports_tools
from aiochatstream.runtime.events import Ended, Text, Thinking, ToolCalls, Usage
from aiochatstream.web.openai.chat_request import ChatCompletionRequest, ChatMessage, FunctionTool, NamedToolChoice
from aiochatstream.web.openai.choice_tokens import ChoiceTokens
from aiochatstream.web.openai.endpoint_context import EndpointContext
from aiochatstream.web.openai.errors import openai_endpoint
from aiochatstream.web.openai.generation import ResponseBuilder, generate, sse
from aiochatstream.web.openai.logprobs import LogprobFormatter
from aiochatstream.web.openai.relay import is_relayed, relay
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
    received = await context.receive(server, request)
    if is_relayed(received.server):
        return await relay(received, "/v1/chat/completions")
    body, server = received.parse(ChatCompletionRequest), received.server
    params: dict[str, Any] = {"constraint": select_constraint(body)}
    if body.logprobs:
        params["logprobs"] = body.top_logprobs or 0
    return await generate(
        server,
        request,
        chat_input(
            body.messages,
            template_tools(None if body.tool_choice == "none" else body.tools),
            continues=bool(body.continue_final_message),
        ),
        body.overrides_for(server.thinking_levels),
        ChatCompletionBuilder(body, received.model, server.engine),
        stream=bool(body.stream),
        owner=received.owner_of(body.cache_salt),
        count=body.n or 1,
        with_token_ids=bool(body.return_token_ids),
        **params,
    )


def chat_input(messages: Sequence[ChatMessage], tools: list[dict[str, Any]], *, continues: bool) -> ChatInput:
    """Return the input of the model.

    :param continues: True continues the last message. If it has neither content nor thoughts, nothing is to be
        continued: a new answer takes its place.
    """
    if continues and len(messages) > 1 and not (messages[-1].content or messages[-1].thoughts):
        messages, continues = messages[:-1], False
    return ChatInput([template_message(message) for message in messages], tools, continues=continues)


def template_message(message: ChatMessage) -> dict[str, Any]:
    """Return ``message`` in the form that chat templates expect, with thoughts as ``reasoning_content``."""
    fields = message.model_dump(exclude_none=True, exclude={"refusal", "reasoning", "reasoning_content"})
    thoughts = {"reasoning_content": message.thoughts} if message.thoughts else {}
    return {"content": message.refusal or "", **fields, **thoughts}


def template_tools(tools: Sequence[FunctionTool] | None) -> list[dict[str, Any]]:
    """Return ``tools`` in the form that chat templates expect."""
    dumped = [tool.model_dump(exclude_none=True) for tool in tools or ()]
    for tool in dumped:  # templates access the properties
        tool["function"]["parameters"] = tool["function"].get("parameters") or NO_PARAMETERS
    return dumped


def select_constraint(body: ChatCompletionRequest) -> Constraint | None:
    """Return the constraint of the answer, by its tool_choice or its format."""
    functions = [tool.function for tool in body.tools or ()]
    if isinstance(body.tool_choice, NamedToolChoice):
        name = body.tool_choice.function.name
        return named_call_constraint(next(function for function in functions if function.name == name))
    if body.tool_choice == "required":
        return required_calls_constraint(functions, parallel=body.parallel_tool_calls is not False)
    return body.constraint


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
        self.tokens = ChoiceTokens()
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
        choice: ChatChoice = {
            "index": self._index,
            "message": message,
            "logprobs": None if self._formatter is None else {"content": self._logprobs, "refusal": None},
            "finish_reason": self._finish,
        }
        if self.tokens.prompt is not None:
            choice["token_ids"] = self.tokens.answer
        return choice

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
        delta: MessageDelta = {"role": "assistant", "content": ""}
        return [{"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def _chunk(
        self, delta: MessageDelta, logprobs: ChoiceLogprobs | None, finish: ChatFinish | None = None
    ) -> ChatChunkChoice:
        chunk: ChatChunkChoice = {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        if token_ids := self.tokens.new_for_chunk():
            chunk["token_ids"] = token_ids
        return chunk


class ChatCompletionBuilder(ResponseBuilder):
    """Builder of a chat completion."""

    id_prefix = "chatcmpl-"

    def __init__(self, request: ChatCompletionRequest, model: str, engine: BaseEngine) -> None:
        if request.max_completion_tokens is not None:
            self.field_names = {**self.field_names, "max_new_tokens": "max_completion_tokens"}
        self.field_names = {**self.field_names, "constraint": request.constraint_field}
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

    def tokens(self, index: int) -> ChoiceTokens:
        return self._choices[index].tokens

    def end_answer(self, index: int, ended: Ended) -> str:
        return "".join(map(self._event, self._choices[index].end(ended)))

    def last_events(self) -> str:
        usage = ""
        if self._include_usage:
            usage = sse(self._chunk([]) | {"usage": self._usage()})
        return f"{usage}data: [DONE]\n\n"

    def body(self) -> ChatCompletion:
        body: ChatCompletion = {
            "id": self.id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice.choice() for choice in self._choices],
            "usage": self._usage(),
        }
        if (prompt := self._choices[0].tokens.prompt) is not None:
            body["prompt_token_ids"] = prompt
        return body

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
        if (prompt := self._choices[0].tokens.prompt_for_chunk()) is not None:
            chunk["prompt_token_ids"] = prompt
        return {**chunk, "usage": None} if self._include_usage else chunk
