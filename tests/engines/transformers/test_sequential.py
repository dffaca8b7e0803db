"""The answers of models that cannot be batched: each in its own thread, one forward pass at a time."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aiochatstream import GenerationParams
from aiochatstream.engines.transformers.sequential import PREFILL_TOKENS, SequentialDecoder
from tests.engines.transformers.tiny_models import ALONE, reference, some_ids, tiny
from tests.helpers import PATIENCE


@pytest.fixture
def told() -> list[str]:
    """The kinds of the forward passes."""
    return []


@pytest.fixture
def alone(told: list[str]) -> SequentialDecoder:
    return SequentialDecoder(tiny(), lambda kind, seconds: told.append(kind))


def params(**given: Any) -> GenerationParams:
    return GenerationParams(**{"temperature": 0.0, "max_new_tokens": 6} | given)


def tokens(alone: SequentialDecoder, ids: list[int], **given: Any) -> list[int]:
    return [token for token in alone.answer(ids, params(**given)).steps() if token is not None]


@pytest.mark.parametrize("length", [1, PREFILL_TOKENS + 9])
@pytest.mark.parametrize("family", [*ALONE, "Qwen2", "Gemma 3"])
def test_greedy_answers_are_those_of_generate(family: str, length: int) -> None:
    model, ids = tiny(family), some_ids(length)
    expected = reference(copy.deepcopy(model), ids, 6)
    assert tokens(SequentialDecoder(model, lambda kind, seconds: None), ids) == expected


@pytest.mark.parametrize(
    ("length", "pieces"), [(1, 1), (PREFILL_TOKENS, 1), (PREFILL_TOKENS + 2, 2), (2 * PREFILL_TOKENS + 5, 3)]
)
def test_between_the_pieces_of_a_prompt_there_is_a_step_to_cancel_at(
    alone: SequentialDecoder, told: list[str], length: int, pieces: int
) -> None:
    answer = alone.answer(some_ids(length), params(max_new_tokens=2))
    steps = list(answer.steps())
    assert steps[:pieces] == [None] * pieces
    assert len(steps) == pieces + 2
    assert answer.reused == 0
    assert told == [*["prefill" if length > 1 else "decode"] * pieces, "decode"]


def test_closing_ends_it_without_another_forward_pass(alone: SequentialDecoder, told: list[str]) -> None:
    steps = alone.answer(some_ids(3 * PREFILL_TOKENS), params()).steps()
    assert next(steps) is None
    steps.close()
    assert told == ["prefill"]
    assert len(tokens(alone, some_ids(4))) == 6


def test_a_token_is_told_before_the_next_is_computed(alone: SequentialDecoder, told: list[str]) -> None:
    steps = alone.answer(some_ids(4), params(max_new_tokens=3)).steps()
    assert next(steps) is None
    passes = []
    for token in steps:
        assert isinstance(token, int)
        passes.append(len(told))
    assert passes == [1, 2, 3]


def test_two_at_once_each_get_their_own_answer_and_passes_never_overlap(alone: SequentialDecoder) -> None:
    prompts = [some_ids(9), some_ids(30, 1)]
    expected = [tokens(alone, ids) for ids in prompts]
    inside, most = 0, 0
    plain = alone._model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return plain(*args, **kwargs)
        finally:
            inside -= 1

    alone._model.forward = counted
    together = threading.Barrier(2)

    def in_step(ids: list[int]) -> list[int]:
        written = []
        for token in alone.answer(ids, params()).steps():
            together.wait(PATIENCE)
            written += [] if token is None else [token]
        return written

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(in_step, prompts)) == expected
    assert most == 1


def test_an_answer_that_fails_leaves_the_others_alone(alone: SequentialDecoder) -> None:
    expected = tokens(alone, some_ids(9))
    with pytest.raises(IndexError):
        tokens(alone, [5, 10_000])
    assert tokens(alone, some_ids(9)) == expected


def test_a_model_without_a_known_cache_is_refused() -> None:
    model = tiny()
    model.forward = lambda input_ids: None
    with pytest.raises(ValueError, match=r"^Qwen2ForCausalLM has no cache"):
        SequentialDecoder(model, lambda kind, seconds: None)
