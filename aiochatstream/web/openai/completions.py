"""The endpoint of completions, which continue a text."""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

from aiohttp import web

from aiochatstream.prompts import TextInput
from aiochatstream.runtime.events import Ended, Text, Usage
from aiochatstream.web.openai.choice_tokens import ChoiceTokens
from aiochatstream.web.openai.completion_request import CompletionRequest
from aiochatstream.web.openai.endpoint_context import EndpointContext
from aiochatstream.web.openai.errors import openai_endpoint
from aiochatstream.web.openai.generation import ResponseBuilder, generate, sse
from aiochatstream.web.openai.logprobs import LogprobFormatter, TextOffsets
from aiochatstream.web.openai.relay import is_relayed, relay
from aiochatstream.web.openai.response_models import (
    AT_MAXIMUM_LENGTH,
    Completion,
    CompletionChunk,
    CompletionUsage,
    TextChoice,
    TextChunkChoice,
    TextFinish,
    TextLogprobs,
    total_usage,
)
from aiochatstream.web.server import Server


@openai_endpoint
async def completions(server: Server, request: web.Request, context: EndpointContext) -> web.StreamResponse:
    """``POST /v1/completions``: the continuation of a text."""
    received = await context.receive(server, request)
    if is_relayed(received.server):
        return await relay(received, "/v1/completions")
    body, server = received.parse(CompletionRequest), received.server
    params: dict[str, Any] = {"constraint": body.constraint}
    if body.logprobs is not None:
        params |= {"logprobs": body.logprobs, "prompt_logprobs": bool(body.echo)}
    if body.max_tokens == 0:
        params["max_new_tokens"] = 0
    return await generate(
        server,
        request,
        TextInput(body.prompts),
        body.overrides,
        CompletionBuilder(body, received.model, server.engine.tokenizer),
        stream=bool(body.stream),
        owner=received.owner_of(body.cache_salt),
        count=body.n or 1,
        with_token_ids=bool(body.return_token_ids),
        **params,
    )


class Echo(NamedTuple):
    """The text of a prompt before its answers, and the number of characters of its tokens before that text."""

    text: str
    chars_before: int


def make_echo(prompt: str | list[int], tokenizer: Any, formatter: LogprobFormatter | None) -> Echo:
    """Return the echo of ``prompt``. Slow for long prompts.

    :param formatter: formatter of the logprobs, if they are requested.
    """
    text = prompt if isinstance(prompt, str) else str(tokenizer.decode(prompt))
    if formatter is None:
        return Echo(text, 0)
    token_ids = tokenizer(text)["input_ids"] if isinstance(prompt, str) else prompt
    return Echo(text, formatter.chars_before(text, token_ids))


class TextChoiceBuilder:
    """Builder of a choice of a completion."""

    def __init__(self, index: int, formatter: LogprobFormatter | None) -> None:
        self._index, self._formatter, self._offsets = index, formatter, TextOffsets()
        self._text = self._echo = ""
        self._expects_first_token = False
        self._logprobs: TextLogprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        self.usage = Usage(0, 0, 0)
        self.tokens = ChoiceTokens()
        self._finish: TextFinish = "stop"

    def begin_with(self, echo: Echo) -> None:
        """Insert the prompt before the answer."""
        self._echo, self._offsets, self._expects_first_token = echo.text, TextOffsets(echo.chars_before), True

    def add_text(self, text: Text) -> TextChunkChoice:
        """Add a piece of text; return its chunk."""
        logprobs = None
        if self._formatter is not None:
            logprobs = self._formatter.for_completion(text.logprobs, self._offsets)
            if self._expects_first_token and logprobs["tokens"]:
                self._expects_first_token = False
                logprobs["token_logprobs"][0] = logprobs["top_logprobs"][0] = None  # no token precedes it
            for name, values in self._logprobs.items():
                values += logprobs[name]  # type: ignore[literal-required]
        return self._chunk(text.text, logprobs if logprobs and logprobs["tokens"] else None)

    def end(self, ended: Ended) -> TextChunkChoice:
        """End the choice; return its last chunk."""
        self.usage = ended.usage
        self._finish = "length" if ended.finish_reason in AT_MAXIMUM_LENGTH else "stop"
        return self._chunk("", None, self._finish)

    def choice(self) -> TextChoice:
        """Return the whole choice."""
        logprobs = None if self._formatter is None else self._logprobs
        choice: TextChoice = {
            "index": self._index,
            "text": self._text,
            "logprobs": logprobs,
            "finish_reason": self._finish,
        }
        if self.tokens.prompt is not None:
            choice |= {"prompt_token_ids": self.tokens.prompt, "token_ids": self.tokens.answer}
        return choice

    def _chunk(self, text: str, logprobs: TextLogprobs | None, finish: TextFinish | None = None) -> TextChunkChoice:
        text, self._echo = self._echo + text, ""
        self._text += text
        chunk: TextChunkChoice = {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        if (prompt := self.tokens.prompt_for_chunk()) is not None:
            chunk["prompt_token_ids"] = prompt
        if token_ids := self.tokens.new_for_chunk():
            chunk["token_ids"] = token_ids
        return chunk


class CompletionBuilder(ResponseBuilder):
    """Builder of a completion."""

    id_prefix = "cmpl-"

    def __init__(self, request: CompletionRequest, model: str, tokenizer: Any) -> None:
        self.field_names = {**self.field_names, "constraint": request.constraint_field}
        self._model, self._created, self._tokenizer = model, int(time.time()), tokenizer
        self._include_usage, self._per_prompt = request.include_usage, request.n or 1
        self._formatter: LogprobFormatter | None = None
        if request.logprobs is not None and tokenizer is not None:
            self._formatter = LogprobFormatter(tokenizer, all_tokens=bool(request.echo))
        self._echoed_prompts = request.prompts if request.echo else []
        count = len(request.prompts) * self._per_prompt
        self._choices = [TextChoiceBuilder(index, self._formatter) for index in range(count)]

    async def prepare(self) -> None:
        for number, prompt in enumerate(self._echoed_prompts):
            echo = await asyncio.to_thread(make_echo, prompt, self._tokenizer, self._formatter)
            for choice in self._choices[number * self._per_prompt :][: self._per_prompt]:
                choice.begin_with(echo)

    def add_text(self, index: int, text: Text) -> str:
        choice = self._choices[index].add_text(text)
        return sse(self._chunk([choice])) if choice["text"] or choice["logprobs"] or "token_ids" in choice else ""

    def tokens(self, index: int) -> ChoiceTokens:
        return self._choices[index].tokens

    def end_answer(self, index: int, ended: Ended) -> str:
        return sse(self._chunk([self._choices[index].end(ended)]))

    def last_events(self) -> str:
        usage = ""
        if self._include_usage:
            usage = sse(self._chunk([]) | {"usage": self._usage()})
        return f"{usage}data: [DONE]\n\n"

    def body(self) -> Completion:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice.choice() for choice in self._choices],
            "usage": self._usage(),
        }

    def _usage(self) -> CompletionUsage:
        return total_usage([choice.usage for choice in self._choices], self._per_prompt)

    def _chunk(self, choices: list[TextChunkChoice]) -> CompletionChunk:
        chunk: CompletionChunk = {
            "id": self.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        return {**chunk, "usage": None} if self._include_usage else chunk
