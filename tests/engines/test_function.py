"""Tests of engines made of functions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest

from aiochatstream import Delta, FunctionEngine, GenerationParams, Prompt
from aiochatstream.engines import AsyncFunctionEngine

MESSAGES = [{"role": "user", "content": "Hi"}]


def answer(function: Callable[..., Any], max_new_tokens: int = 10) -> Generator[Delta, None, None]:
    return FunctionEngine(function).generate(Prompt(MESSAGES, []), GenerationParams(max_new_tokens=max_new_tokens))


class Endless:
    """An endless function that counts its steps and records whether it was closed.

    It keeps its generator, so that only closing it runs its end.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.closed = False
        self.strings = self.count()

    def __call__(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        return self.strings

    def count(self) -> Generator[str, None, None]:
        try:
            while True:
                self.steps += 1
                yield f"{self.steps} "
        finally:
            self.closed = True


def test_a_function_receives_the_messages_and_the_parameters() -> None:
    calls = []

    def noting(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        calls.append((messages, params))
        return iter(())

    list(answer(noting, 7))
    assert calls == [(MESSAGES, GenerationParams(max_new_tokens=7))]


@pytest.mark.parametrize("strings", [["Hel", "lo"], []])
def test_a_function_that_ends_finishes_with_stop(strings: list[str]) -> None:
    deltas = list(answer(lambda messages, params: iter(strings)))
    assert [delta.text for delta in deltas if delta.text] == strings
    assert [delta.finish_reason for delta in deltas] == [None] * len(strings) + ["stop"]
    assert sum(delta.token_count for delta in deltas) == len(strings)


def test_max_new_tokens_limits_the_strings_of_a_function() -> None:
    endless = Endless()
    deltas = list(answer(endless, 3))
    assert "".join(delta.text for delta in deltas) == "1 2 3 "
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == [deltas[-1].finish_reason] == ["length"]
    assert (endless.steps, endless.closed) == (3, True)


def test_closing_the_answer_closes_the_function() -> None:
    endless = Endless()
    deltas = answer(endless)
    next(deltas)
    assert not endless.closed
    deltas.close()
    assert (endless.steps, endless.closed) == (1, True)


@pytest.mark.parametrize("value", [None, b"text", 1])
def test_a_value_that_is_not_text_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="must yield str, not "):
        list(answer(lambda messages, params: iter([value])))


def test_an_exception_of_a_function_is_raised_after_its_text() -> None:
    def failing(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        yield "so far"
        raise ZeroDivisionError

    deltas = answer(failing)
    assert next(deltas).text == "so far"
    with pytest.raises(ZeroDivisionError):
        next(deltas)


@pytest.mark.parametrize(
    ("params", "texts", "reason"),
    [
        ({}, ["1 ", "2 ", "3 "], "stop"),
        ({"max_new_tokens": 2}, ["1 ", "2 "], "length"),
        ({"stop": ("2",)}, ["1 "], "stop"),
    ],
)
async def test_an_async_function_ends_as_a_blocking_one(params: dict[str, Any], texts: list[str], reason: str) -> None:
    closed = []

    async def count(messages: list[dict[str, str]], params: GenerationParams) -> AsyncIterator[str]:
        assert messages == MESSAGES
        try:
            for number in (1, 2, 3):
                yield f"{number} "
        finally:
            closed.append(True)

    engine = AsyncFunctionEngine(count)
    assert "count" in engine.describe()["model"]
    deltas = [delta async for delta in engine.generate(Prompt(MESSAGES, []), GenerationParams(**params))]
    assert [delta.text for delta in deltas if delta.text] == texts
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == [reason]
    assert sum(delta.token_count for delta in deltas) == (len(texts) if "stop" not in params else 2)
    assert closed == [True]
