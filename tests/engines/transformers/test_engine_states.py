"""Tests of models with states in the engine: answers are those of ``model.generate`` in any schedule of requests."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream import GenerationParams, Prompt
from aiochatstream.engines.transformers import TransformersEngine, scheduler
from aiochatstream.engines.transformers.attention import running_step
from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.engines.transformers.mixers import PackedMixer
from aiochatstream.engines.transformers.packed_step import PackedStep
from tests.engines.transformers.batch_harness import Submission, wait_until_idle
from tests.engines.transformers.engine_harness import answer, concurrent_answers, load_engine
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
    wait_until_idle(engine.decoder)
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


Fail = Callable[[TransformersEngine, Callable[[PackedStep], bool], Exception], None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Function that lets the last module with states of an engine raise an error in the first step that a function of
    the step selects.
    """

    def fail(engine: TransformersEngine, select: Callable[[PackedStep], bool], error: Exception) -> None:
        forwards = [getattr(module.forward, "__self__", None) for module in engine._model.modules()]
        mixer = [forward for forward in forwards if isinstance(forward, PackedMixer)][-1]
        compute, steps, errors = mixer.compute, list[PackedStep](), [error]

        def compute_or_fail(*arguments: Any) -> torch.Tensor:
            result = compute(*arguments)
            step = running_step()
            assert step is not None
            if not steps or step is not steps[-1]:  # the module is called for each group of rows
                steps.append(step)
                if errors and select(step):
                    raise errors.pop()
            return result

        monkeypatch.setattr(mixer, "compute", compute_or_fail)

    return fail


def step_number(number: int) -> Callable[[PackedStep], bool]:
    """Return a function that selects a step, the next one being 1."""
    steps = itertools.count(1)
    return lambda step: next(steps) == number


@pytest.mark.parametrize("failing_step", [1, 2, 3, 9])
def test_states_of_a_failed_step_are_computed_again(
    pair: tuple[TransformersEngine, Any],
    fail: Fail,
    failing_step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (16, 16))
    engine, plain = pair
    batch = engine.decoder
    assert isinstance(batch, Batch)
    with batch.wake:
        old = Submission(batch, some_ids(40), max_new_tokens=20)
        newest = Submission(batch, some_ids(9, 1), max_new_tokens=20)
        fail(engine, step_number(failing_step), MemoryError("none left"))
    with pytest.raises(MemoryError, match="Out of memory in a step of "):
        newest.read_all()
    assert_same(plain, some_ids(40), old.read_all(), reference(plain, some_ids(40), 20))


def test_rows_of_a_step_with_a_transient_error_are_computed_again(
    pair: tuple[TransformersEngine, Any], fail: Fail
) -> None:
    engine, plain = pair
    batch = engine.decoder
    assert isinstance(batch, Batch)
    old = [Submission(batch, some_ids(40, seed), max_new_tokens=100) for seed in range(2)]
    while not all(running.tokens for running in old):
        for running in old:
            running.next()
    starts: list[bool] = []

    def starts_beside_others(step: PackedStep) -> bool:
        positions = step.positions[0].tolist()
        starts.append(len(positions) == 3 and positions[2] == 0)
        return starts[-1]

    fail(engine, starts_beside_others, RuntimeError("a transient error"))
    new = Submission(batch, some_ids(1, 2), max_new_tokens=10)
    for running in (new, *old):
        tokens = running.read_all()
        assert_same(plain, running.prompt, tokens, reference(plain, running.prompt, len(tokens)))
    assert any(starts), "the new row did not start beside others"


@pytest.mark.parametrize("failing_step", [2, 9])
def test_prompt_logprobs_are_complete_after_a_failed_step(
    pair: tuple[TransformersEngine, Any],
    fail: Fail,
    failing_step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (16, 16))
    engine, _ = pair
    batch = engine.decoder
    assert isinstance(batch, Batch)
    options: dict[str, Any] = {"max_new_tokens": 12, "prompt_logprobs": True, "logprobs": 0}
    alone = Submission(batch, some_ids(40), **options)
    alone.read_all()
    with batch.wake:
        old = Submission(batch, some_ids(40), **options)
        newest = Submission(batch, some_ids(9, 1), max_new_tokens=20)
        fail(engine, step_number(failing_step), MemoryError("none left"))
    with pytest.raises(MemoryError):
        newest.read_all()
    assert old.read_all() == alone.tokens
    expected, actual = ([*answer.request.prompt_logprobs, *answer.request.logprobs] for answer in (alone, old))
    assert [logprob.token_id for logprob in actual] == [logprob.token_id for logprob in expected]
    assert len(actual) == 39 + 12
    assert max(abs(a.logprob - b.logprob) for a, b in zip(actual, expected, strict=True)) < 0.05


def test_more_requests_than_rows_are_answered_one_after_the_other(pair: tuple[TransformersEngine, Any]) -> None:
    engine, plain = pair
    prompts = [some_ids(3 + 11 * seed, seed) for seed in range(7)]
    answers = concurrent_answers(engine, prompts, max_new_tokens=5, ignore_eos=True)
    for ids, actual in zip(prompts, answers, strict=True):
        assert_same(plain, ids, actual, reference(plain, ids, 5))
