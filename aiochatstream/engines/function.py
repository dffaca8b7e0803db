"""Any blocking generator function as an engine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from aiochatstream.engines.base import Delta, Engine, Prompt
from aiochatstream.engines.stop_strings import StopStrings
from aiochatstream.params import GenerationParams

TextFunction = Callable[[list[dict[str, str]], GenerationParams], Iterator[str]]


class FunctionEngine(Engine):
    """Answers with what ``function(messages, params)`` yields, piece by piece; a piece counts as one token.

    The function runs in a worker thread and may block. It is closed (GeneratorExit at its ``yield``) when the client
    stops or leaves. At most ``params.max_new_tokens`` pieces are taken, and stop strings end the answer.
    """

    def __init__(self, function: TextFunction) -> None:
        self._function = function

    def describe(self) -> dict[str, str]:
        return {"model": getattr(self._function, "__qualname__", repr(self._function))}

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        pieces = self._function(prompt.messages, params)
        stops = StopStrings(params.stop)
        try:
            for count, piece in enumerate(pieces, 1):
                if not isinstance(piece, str):
                    raise TypeError(f"An engine function yields str, not {piece!r}")
                text, stopped = stops.push(piece)
                if stopped:
                    yield Delta(text, (0,), "stop")
                    return
                yield Delta(text, (0,))
                if count == params.max_new_tokens:
                    yield Delta(stops.rest(), finish_reason="length")
                    return
            yield Delta(stops.rest(), finish_reason="stop")
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
