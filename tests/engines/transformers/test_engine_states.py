"""Tests of models with states in the engine: answers are those of ``model.generate`` in any schedule of requests."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream import GenerationParams, Prompt
from aiochatstream.engines.transformers import TransformersEngine, scheduler
from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.engines.transformers.mixers import PackedMixer
from tests.engines.transformers.engine_harness import answer, concurrent_answers, deltas_of, load_engine
from tests.engines.transformers.tiny_models import HYBRID, STATES, assert_same, reference, some_ids, tiny

ROWS = 3


@pytest.fixture(scope="module", params=STATES | HYBRID)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[TransformersEngine, Any]]:
    """An engine, and a copy of its model."""
    model = tiny(request.param)
    plain = copy.deepcopy(model)
    engine = load_engine(model, slots=ROWS)
    assert engine.batch_obstacle is None
    yield engine, plain
    assert isinstance(engine.decoder, Batch)
    assert sorted(engine.decoder.rows.free_rows) == list(range(ROWS)), "a row was lost"
    engine.close()


class Answer:
    """An answer that is read step by step."""

    def __init__(self, engine: TransformersEngine, ids: list[int], count: int) -> None:
        params = GenerationParams(temperature=0, max_new_tokens=count, ignore_eos=True)
        self.ids, self.count, self.tokens = ids, count, list[int]()
        self._steps = engine.generate(Prompt([], ids), params)

    def read(self, steps: int) -> None:
        """Read some steps, at most to the end."""
        for _, delta in zip(range(steps), self._steps, strict=False):
            self.tokens += delta.token_ids

    def close(self) -> None:
        self._steps.close()

    def assert_exact(self, model: Any) -> None:
        assert_same(model, self.ids, self.tokens, reference(model, self.ids, self.count)[: len(self.tokens)])


request_plans = st.tuples(st.sampled_from([1, 2, 17, 40, 90]), st.integers(1, 10), st.none() | st.integers(0, 8))
"""Length of the prompt, max_new_tokens, and the number of steps, of prompts too, after which the client disconnects."""


@settings(max_examples=5, deadline=None)
@given(st.lists(request_plans, min_size=3, max_size=7))
def test_answers_are_those_of_generate_in_any_schedule(
    pair: tuple[TransformersEngine, Any], plan: list[tuple[int, int, int | None]]
) -> None:
    engine, plain = pair
    answers = [Answer(engine, some_ids(length, seed), count) for seed, (length, count, _) in enumerate(plan)]

    def read(planned: Answer, disconnect_after: int | None) -> None:
        with closing(planned):
            planned.read(1000 if disconnect_after is None else disconnect_after)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(plan)) as threads:
        patch.setattr(scheduler, "PREFILL_BUDGET", (16, 16))
        ended = list(threads.map(read, answers, [disconnect_after for *_, disconnect_after in plan]))
    assert len(ended) == len(plan)
    for planned, (_, count, disconnect_after) in zip(answers, plan, strict=True):
        planned.assert_exact(plain)
        assert disconnect_after is not None or len(planned.tokens) == count


def test_a_row_of_a_cancelled_prompt_begins_anew(
    pair: tuple[TransformersEngine, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, plain = pair
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (16, 16))
    others = [Answer(engine, some_ids(20, seed), 60) for seed in range(2)]
    for other in others:
        other.read(8)
    cancelled = Answer(engine, some_ids(600, 5), 9)
    cancelled.read(3)
    assert not cancelled.tokens, "the prompt is complete"
    cancelled.close()
    new = Answer(engine, some_ids(9, 6), 12)
    new.read(1000)
    for other in others:
        other.read(1000)
    for finished in (new, *others):
        finished.assert_exact(plain)
        assert len(finished.tokens) == finished.count


def test_repeated_and_continued_prompts_have_the_same_answers(pair: tuple[TransformersEngine, Any]) -> None:
    engine, plain = pair
    first = some_ids(30)
    tokens = answer(engine, first, max_new_tokens=9, ignore_eos=True)
    for ids in (first, first + tokens + [7, 8, 9]):
        actual = answer(engine, ids, max_new_tokens=9, ignore_eos=True)
        assert_same(plain, ids, actual, reference(plain, ids, 9))


@pytest.fixture
def failing_mixer(monkeypatch: pytest.MonkeyPatch) -> list[MemoryError]:
    """Errors that the calls of the last mixer raise, the last ones first; an empty list for no error."""
    errors: list[MemoryError] = []
    compute, names = PackedMixer.compute, set[int]()

    def fail(mixer: PackedMixer, *arguments: Any) -> torch.Tensor:
        names.add(id(mixer))
        result = compute(mixer, *arguments)
        if errors and id(mixer) == max(names):
            raise errors.pop()
        return result

    monkeypatch.setattr(PackedMixer, "compute", fail)
    return errors


def test_states_of_a_failed_step_are_computed_again(
    pair: tuple[TransformersEngine, Any], failing_mixer: list[MemoryError]
) -> None:
    engine, plain = pair
    running = Answer(engine, some_ids(40), 20)
    running.read(6)
    assert running.tokens
    newest = Answer(engine, some_ids(9, 1), 20)
    newest.read(3)
    failing_mixer.append(MemoryError("none left"))
    with pytest.raises(MemoryError, match="Out of memory in a step of "):
        newest.read(1000)
    assert not failing_mixer
    running.read(1000)
    running.assert_exact(plain)
    assert len(running.tokens) == 20


def test_prompt_logprobs_are_complete_after_a_failed_step(
    pair: tuple[TransformersEngine, Any], failing_mixer: list[MemoryError], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = pair
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (16, 16))
    params: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True, "prompt_logprobs": True, "logprobs": 0}
    expected = [logprob for delta in deltas_of(engine, some_ids(40), **params) for logprob in delta.logprobs]
    assert len(expected) == 46
    for steps in (1, 4):
        options = GenerationParams(temperature=0, **params)
        deltas = engine.generate(Prompt([], some_ids(40)), options)
        actual = [logprob for _, delta in zip(range(steps), deltas, strict=False) for logprob in delta.logprobs]
        newest = Answer(engine, some_ids(9, 1), 20)
        newest.read(1)
        failing_mixer.append(MemoryError("none left"))
        with pytest.raises(MemoryError):
            newest.read(1000)
        actual += [logprob for delta in deltas for logprob in delta.logprobs]
        assert [logprob.token_id for logprob in actual] == [logprob.token_id for logprob in expected]
        assert all(abs(a.logprob - b.logprob) < 1e-3 for a, b in zip(actual, expected, strict=True))


def test_more_requests_than_rows_are_answered_one_after_the_other(pair: tuple[TransformersEngine, Any]) -> None:
    engine, plain = pair
    prompts = [some_ids(3 + 11 * seed, seed) for seed in range(7)]
    answers = concurrent_answers(engine, prompts, max_new_tokens=5, ignore_eos=True)
    for ids, actual in zip(prompts, answers, strict=True):
        assert_same(plain, ids, actual, reference(plain, ids, 5))
