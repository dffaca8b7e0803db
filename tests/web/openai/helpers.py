"""A client of OpenAI's API, engines and messages for its tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from aiochatstream import FunctionEngine, GenerationParams
from tests.helpers import Server

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "one two three"}]


class OpenAIClientOf(Protocol):
    """Returns a client of a server, closed after the test. Strict clients validate responses."""

    def __call__(
        self, server: Server, *, api_key: str = "none", max_retries: int = 0, strict: bool = True
    ) -> AsyncOpenAI: ...


class SpyEngine:
    """An engine function that yields ``texts``, and records its arguments."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.messages: list[list[dict[str, str]]] = []
        self.params: list[GenerationParams] = []

    def __call__(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        self.messages.append(messages)
        self.params.append(params)
        yield from self.texts


class ConstrainedEngine(FunctionEngine):
    """An engine that accepts constraints, and relies on its function to conform to them."""

    def check(self, params: GenerationParams) -> None:
        pass


def tool(name: str, parameters: dict[str, Any] | None = None) -> Any:
    """Return a function tool, of any type because OpenAI's client has one type per endpoint."""
    function = {"name": name} if parameters is None else {"name": name, "parameters": parameters}
    return {"type": "function", "function": function}


CALLS_TEMPLATE: dict[str, Any] = {"fields": {"tool_calls": {}}}
"""Response template of an engine that reads calls; only the engine itself uses its contents."""
