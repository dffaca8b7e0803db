"""Engines that wrap a generator function of an application."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any

from aiochatstream.engines.base import AsyncEngine, Delta, Engine, Prompt
from aiochatstream.engines.stop_strings import StopStrings
from aiochatstream.params import GenerationParams

TextFunction = Callable[[list[dict[str, str]], GenerationParams], Iterator[str]]

AsyncTextFunction = Callable[[list[dict[str, str]], GenerationParams], AsyncIterator[str]]


class FunctionEngine(Engine):
    """Answers with the strings that ``function(messages, params)`` yields; each string counts as one token.

    The function runs in a worker thread and may block. It is closed (GeneratorExit at its ``yield``) when the client
    stops the answer or disconnects, after ``params.max_new_tokens`` strings, and at a stop string.
    """

    def __init__(self, function: TextFunction) -> None:
        self._function = function

    def describe(self) -> dict[str, str]:
        return {"model": function_name(self._function)}

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        strings = self._function(prompt.messages, params)
        answer = StringDeltas(params)
        try:
            for string in strings:
                yield from answer.push(string)
                if answer.ended:
                    return
            yield answer.end()
        finally:
            close = getattr(strings, "close", None)
            if close is not None:
                close()


class AsyncFunctionEngine(AsyncEngine):
    """Answers with the strings that the asynchronous generator of ``function(messages, params)`` yields.

    Each string counts as one token. The generator is closed when the client stops the answer or disconnects, by a
    cancellation at its ``await``; after ``params.max_new_tokens`` strings; and at a stop string.
    """

    def __init__(self, function: AsyncTextFunction) -> None:
        self._function = function

    def describe(self) -> dict[str, str]:
        return {"model": function_name(self._function)}

    async def generate(self, prompt: Prompt, params: GenerationParams) -> AsyncGenerator[Delta, None]:
        strings = self._function(prompt.messages, params)
        answer = StringDeltas(params)
        try:
            async for string in strings:
                for delta in answer.push(string):
                    yield delta
                if answer.ended:
                    return
            yield answer.end()
        finally:
            close = getattr(strings, "aclose", None)
            if close is not None:
                await close()


class StringDeltas:
    """Deltas of an answer whose tokens are strings, with stop strings and a maximum length."""

    def __init__(self, params: GenerationParams) -> None:
        self._stop_strings = StopStrings(params.stop)
        self._left = params.max_new_tokens
        self.ended = False
        """True after a stop string, and at the maximum length."""

    def push(self, string: str) -> Iterator[Delta]:
        """Add a string and yield its deltas. Raise TypeError unless it is a string."""
        if not isinstance(string, str):
            raise TypeError(f"An engine function must yield str, not {string!r}.")
        text, stopped = self._stop_strings.push(string)
        self._left -= 1
        self.ended = stopped or not self._left
        yield Delta(text, finish_reason="stop" if stopped else None, tokens=1)
        if self.ended and not stopped:
            yield Delta(self._stop_strings.flush(), finish_reason="length")

    def end(self) -> Delta:
        """Return the last delta of an answer that ends by itself."""
        return Delta(self._stop_strings.flush(), finish_reason="stop")


def function_name(function: Callable[..., Any]) -> str:
    """Return the name of ``function`` for display."""
    return getattr(function, "__qualname__", repr(function))
