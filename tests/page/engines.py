"""Engine functions for the tests of the page."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Iterator

from aiochatstream import Delta, Engine, GenerationParams, Prompt

Messages = list[dict[str, str]]

EngineFunction = Callable[[Messages, GenerationParams], Iterator[str]]


def echo_chunks(messages: Messages, params: GenerationParams) -> Iterator[str]:
    """Yield the newest message in chunks of seven characters."""
    text = messages[-1]["content"]
    for start in range(0, len(text), 7):
        yield text[start : start + 7]


def numbered_answers() -> EngineFunction:
    """Return an engine function that yields ``answer N`` for its N-th request."""
    numbers = itertools.count(1)

    def answer(messages: Messages, params: GenerationParams) -> Iterator[str]:
        number = next(numbers)
        yield "answer "
        yield str(number)

    return answer


class PiecewiseEngine:
    """An engine function that yields its next piece when the test releases it."""

    def __init__(self, *pieces: str) -> None:
        self._pieces = iter(pieces)
        self._permits = threading.Semaphore(0)

    def __call__(self, messages: Messages, params: GenerationParams) -> Iterator[str]:
        for piece in self._pieces:
            self._permits.acquire()
            yield piece

    def next(self, count: int = 1) -> None:
        self._permits.release(count)


class DeltaStepper(Engine):
    """An engine that yields its next delta when the test releases it; answers share the deltas.

    params: parameters of each answer.
    """

    def __init__(self, *deltas: Delta) -> None:
        self.params: list[GenerationParams] = []
        self._deltas = iter(deltas)
        self._permits = threading.Semaphore(0)

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        self.params.append(params)
        for delta in self._deltas:
            self._permits.acquire()
            yield delta
            if delta.finish_reason:
                return
        yield Delta(finish_reason="stop")

    def next(self, count: int = 1) -> None:
        self._permits.release(count)


def thought(text: str) -> Delta:
    """Return a piece of a thought: one token."""
    return Delta(thinking=text, token_ids=(0,), thinking_tokens=1)
