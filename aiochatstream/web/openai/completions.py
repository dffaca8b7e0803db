"""Completions: the model goes on with a text, as it is."""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

from aiohttp import web

from aiochatstream.prompts import TextInput
from aiochatstream.runtime.events import Ended, Text, Usage
from aiochatstream.web.openai.completion_request import CompletionRequest
from aiochatstream.web.openai.endpoint_context import Service
from aiochatstream.web.openai.errors import answers_openai_errors
from aiochatstream.web.openai.generation import Answer, answer_with, sse
from aiochatstream.web.openai.logprobs import LogprobWriter, Offsets
from aiochatstream.web.openai.response_models import (
    Completion,
    CompletionChunk,
    TextChoice,
    TextChunkChoice,
    TextFinish,
    TextLogprobs,
    usage_of,
)
from aiochatstream.web.server import Server


@answers_openai_errors
async def completions(server: Server, request: web.Request, service: Service) -> web.StreamResponse:
    """``POST /v1/completions``: what comes after a text."""
    asked, owner = await service.read(server, request, CompletionRequest)
    more: dict[str, Any] = {}
    if asked.logprobs is not None:
        more |= {"logprobs": asked.logprobs, "prompt_logprobs": bool(asked.echo)}
    if asked.max_tokens == 0:
        more["max_new_tokens"] = 0
    return await answer_with(
        server,
        request,
        TextInput(asked.texts),
        asked.overrides,
        CompletionAnswer(asked, service.name(server), server.engine.tokenizer),
        stream=bool(asked.stream),
        owner=owner,
        count=asked.n or 1,
        **more,
    )


class Echo(NamedTuple):
    """The text of a prompt that comes before its answers, and how many characters of its tokens are not in that."""

    text: str
    before: int


def _echo(prompt: str | list[int], tokenizer: Any, logprobs: LogprobWriter | None) -> Echo:
    text = prompt if isinstance(prompt, str) else str(tokenizer.decode(prompt))
    if logprobs is None:
        return Echo(text, 0)
    return Echo(text, logprobs.before(text, tokenizer(text)["input_ids"] if isinstance(prompt, str) else prompt))


class Choice:
    """One answer in the making."""

    def __init__(self, index: int, logprobs: LogprobWriter | None) -> None:
        self._index, self._logprobs, self._offsets = index, logprobs, Offsets()
        self._text = self._echo = ""
        self._begins_prompt = False
        self._told: TextLogprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        self.usage = Usage(0, 0, 0)
        self._finish: TextFinish = "stop"

    def begin_with(self, echo: Echo) -> None:
        """Let the prompt come before it."""
        self._echo, self._offsets, self._begins_prompt = echo.text, Offsets(echo.before), True

    def take(self, text: Text) -> TextChunkChoice:
        """More of it, as a stream's chunk tells of it."""
        logprobs = None
        if self._logprobs is not None:
            logprobs = self._logprobs.of_text(text.logprobs, self._offsets)
            if self._begins_prompt and logprobs["tokens"]:
                self._begins_prompt = False
                logprobs["token_logprobs"][0] = logprobs["top_logprobs"][0] = None  # nothing precedes it
            for name, values in self._told.items():
                values += logprobs[name]  # type: ignore[literal-required]
        return self._chunk(text.text, logprobs if logprobs and logprobs["tokens"] else None)

    def end(self, ended: Ended) -> TextChunkChoice:
        """Its end."""
        self.usage = ended.usage
        self._finish = "length" if ended.finish_reason == "length" else "stop"
        return self._chunk("", None, self._finish)

    def whole(self) -> TextChoice:
        """All of it."""
        logprobs = None if self._logprobs is None else self._told
        return {"index": self._index, "text": self._text, "logprobs": logprobs, "finish_reason": self._finish}

    def _chunk(self, text: str, logprobs: TextLogprobs | None, finish: TextFinish | None = None) -> TextChunkChoice:
        text, self._echo = self._echo + text, ""
        self._text += text
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish}


class CompletionAnswer(Answer):
    """A completion in the making."""

    prefix = "cmpl-"

    def __init__(self, asked: CompletionRequest, model: str, tokenizer: Any) -> None:
        self._model, self._created, self._tokenizer = model, int(time.time()), tokenizer
        self._tells_usage, self._per_prompt = asked.include_usage, asked.n or 1
        self._logprobs: LogprobWriter | None = None
        if asked.logprobs is not None and tokenizer is not None:
            self._logprobs = LogprobWriter(tokenizer, all_tokens=bool(asked.echo))
        self._echoed = asked.texts if asked.echo else []
        self._choices = [Choice(index, self._logprobs) for index in range(len(asked.texts) * self._per_prompt)]

    async def prepare(self) -> None:
        for at, prompt in enumerate(self._echoed):
            echo = await asyncio.to_thread(_echo, prompt, self._tokenizer, self._logprobs)
            for choice in self._choices[at * self._per_prompt :][: self._per_prompt]:
                choice.begin_with(echo)

    def take(self, index: int, text: Text) -> str:
        choice = self._choices[index].take(text)
        return sse(self._chunk([choice])) if choice["text"] or choice["logprobs"] else ""

    def end(self, index: int, ended: Ended) -> str:
        return sse(self._chunk([self._choices[index].end(ended)]))

    def last(self) -> str:
        usage = ""
        if self._tells_usage:
            usage = sse(self._chunk([]) | {"usage": usage_of([one.usage for one in self._choices], self._per_prompt)})
        return f"{usage}data: [DONE]\n\n"

    def whole(self) -> Completion:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice.whole() for choice in self._choices],
            "usage": usage_of([choice.usage for choice in self._choices], self._per_prompt),
        }

    def _chunk(self, choices: list[TextChunkChoice]) -> CompletionChunk:
        chunk: CompletionChunk = {
            "id": self.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        return {**chunk, "usage": None} if self._tells_usage else chunk
