"""An engine that wraps a blocking generator function."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from aiochatstream.engines.base import Delta, Engine, Prompt
from aiochatstream.engines.stop_strings import StopStrings
from aiochatstream.params import GenerationParams

TextFunction = Callable[[list[dict[str, str]], GenerationParams], Iterator[str]]


class FunctionEngine(Engine):
    """Answers with the strings that ``function(messages, params)`` yields; each string counts as one token.

    The function runs in a worker thread and may block. It is closed (GeneratorExit at its ``yield``) when the client
    stops the answer or disconnects, after ``params.max_new_tokens`` strings, and at a stop string.
    """

    def __init__(self, function: TextFunction) -> None:
        self._function = function

    def describe(self) -> dict[str, str]:
        return {"model": getattr(self._function, "__qualname__", repr(self._function))}

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        strings = self._function(prompt.messages, params)
        stop_strings = StopStrings(params.stop)
        try:
            for count, string in enumerate(strings, 1):
                if not isinstance(string, str):
                    raise TypeError(f"An engine function must yield str, not {string!r}.")
                text, stopped = stop_strings.push(string)
                if stopped:
                    yield Delta(text, (0,), "stop")
                    return
                yield Delta(text, (0,))
                if count == params.max_new_tokens:
                    yield Delta(stop_strings.flush(), finish_reason="length")
                    return
            yield Delta(stop_strings.flush(), finish_reason="stop")
        finally:
            close = getattr(strings, "close", None)
            if close is not None:
                close()
