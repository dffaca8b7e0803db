"""Any blocking generator function as an engine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from aiochatstream.engines.base import Delta, Engine, Prompt
from aiochatstream.params import GenerationParams

TextFunction = Callable[[list[dict[str, str]], GenerationParams], Iterator[str]]


class FunctionEngine(Engine):
    """Answers with what ``function(messages, params)`` yields, piece by piece; a piece counts as one token.

    The function runs in a worker thread and may block. It is closed (GeneratorExit at its ``yield``) when the client
    stops or leaves. At most ``params.max_new_tokens`` pieces are taken.
    """

    def __init__(self, function: TextFunction) -> None:
        self._function = function

    def describe(self) -> dict[str, str]:
        return {"model": getattr(self._function, "__qualname__", repr(self._function))}

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        pieces = self._function(prompt.messages, params)
        try:
            for count, piece in enumerate(pieces, 1):
                yield Delta(piece, (0,))
                if count == params.max_new_tokens:
                    yield Delta(finish_reason="length")
                    return
            yield Delta(finish_reason="stop")
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
