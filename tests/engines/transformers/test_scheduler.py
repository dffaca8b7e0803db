"""Tests of the chunks that steps read, with the one-layer model, and of their shares, without a model."""

from __future__ import annotations

from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream import GenerationParams
from aiochatstream.engines.transformers import batch as batch_module
from aiochatstream.engines.transformers import scheduler
from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.request import Request
from aiochatstream.engines.transformers.scheduler import ACCELERATOR_FACTOR, PREFILL_BUDGET, QUICK_TOKENS, Scheduler
from tests.engines.transformers.batch_harness import MakeBatch, OneLayerModel, Submission, ids, lengths

DOCUMENT, QUESTION = 6000, 30
"""Tokens of prompts."""

QUESTIONS = 5
"""Number of questions beside a document, as in bench/engine.py."""

STEP_MS, TOKEN_MS = 25.0, 1.0
"""Duration of a step without tokens, and of each token."""


def test_long_prompts_are_read_in_chunks_while_others_decode_and_each_step_is_reported(
    make_batch: MakeBatch, manual_model: OneLayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (4, 7))
    monkeypatch.setattr(scheduler, "TOKEN_MULTIPLE", 1)
    kinds: list[str] = []
    batch = make_batch(manual_model, rows=2, on_step=lambda kind, seconds: kinds.append(kind))
    decoding = Submission(batch, ids(2, 1), max_new_tokens=6)
    manual_model.wait_for_step()
    reading = Submission(batch, ids(9, 2), max_new_tokens=2)
    manual_model.run_freely()
    assert [decoding.next() is not None for _ in range(6)] == [True] * 6
    assert [reading.next() is not None for _ in range(4)] == [False, False, True, True]
    assert [lengths(step) for step in manual_model.steps] == [
        [(0, 2)],
        [(2, 1), (0, 4)],
        [(3, 1), (4, 4)],
        [(4, 1), (8, 1)],
        [(5, 1), (9, 1)],
        [(6, 1)],
    ]
    batch.close()
    assert kinds == ["prefill", "prefill", "prefill", "decode", "decode", "decode"]


def test_prompts_are_read_in_maximum_chunks_if_no_request_decodes(
    make_batch: MakeBatch, free_model: OneLayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (2, 7))
    request = Submission(make_batch(free_model), ids(16), max_new_tokens=2)
    assert request.read_all() == free_model.answer(request.prompt, 2)
    assert [lengths(step) for step in free_model.steps] == [[(0, 7)], [(7, 7)], [(14, 2)], [(16, 1)]]


@pytest.mark.parametrize(
    ("max_step", "waiting", "budget"),
    [(None, 1, 16), (None, 2, 32), (3 / 64, 1, 32), (3 / 64, 2, 32), (1 / 64, 1, 3), (9.0, 1, 40)],
)
def test_prompt_tokens_of_a_step_are_limited_by_its_expected_duration(
    make_batch: MakeBatch,
    manual_model: OneLayerModel,
    monkeypatch: pytest.MonkeyPatch,
    max_step: float | None,
    waiting: int,
    budget: int,
) -> None:
    """A step of one token takes 1/64 s and each further token 1/1024 s, so twice the duration allows 16 tokens."""
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(batch_module, "time", clock)
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (3, 40))
    monkeypatch.setattr(scheduler, "TOKEN_MULTIPLE", 1)

    def advance_clock(chunks: list[Any]) -> None:
        clock.now += (15 + sum(len(tokens) for _, tokens in chunks)) / 1024

    manual_model.error_for = advance_clock
    batch = make_batch(manual_model, rows=3, length=200, max_step=max_step)
    decoding = Submission(batch, ids(12, 1), max_new_tokens=30)
    manual_model.wait_for_step()
    manual_model.step(2)
    prompts = [Submission(batch, ids(90, 2 + seed), max_new_tokens=1) for seed in range(waiting)]
    manual_model.step()
    assert lengths(manual_model.steps[-1]) == [(14, 1), (0, budget)]
    manual_model.run_freely()
    for request in (decoding, *prompts):
        request.read_all()


def test_steps_with_prompts_have_rounded_sizes_if_the_prompt_is_long_enough(
    make_batch: MakeBatch, manual_model: OneLayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (8, 45))
    monkeypatch.setattr(scheduler, "TOKEN_MULTIPLE", 10)
    batch = make_batch(manual_model, rows=2, length=200, max_step=9.0)
    decoding = Submission(batch, ids(5, 1), max_new_tokens=30)
    manual_model.wait_for_step()
    manual_model.step(2)
    reading = Submission(batch, ids(90, 2), max_new_tokens=1)
    manual_model.step(3)
    assert [lengths(step)[1] for step in manual_model.steps[-3:]] == [(0, 39), (39, 39), (78, 12)]
    manual_model.run_freely()
    assert reading.read_all() == manual_model.answer(reading.prompt, 1)
    assert decoding.read_all() == manual_model.answer(decoding.prompt, 30)


@pytest.mark.parametrize(
    ("limit", "chunks"), [(-1.0, [16, 8, 4, 2, 2, 2, 2, 2, 2]), (60.0, [16, 16, 8])], ids=["slow", "fast"]
)
def test_slow_steps_reduce_the_chunks_of_later_ones(
    make_batch: MakeBatch,
    free_model: OneLayerModel,
    monkeypatch: pytest.MonkeyPatch,
    limit: float,
    chunks: list[int],
) -> None:
    """A disconnect is noticed only between steps."""
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (2, 16))
    monkeypatch.setattr(scheduler, "SLOW_STEP_SECONDS", limit)
    monkeypatch.setattr(scheduler, "SLOW_STEP_FACTOR", limit)
    request = Submission(make_batch(free_model), ids(40), max_new_tokens=1)
    assert request.read_all() == free_model.answer(request.prompt, 1)
    assert [length for step in free_model.steps for _, length in lengths(step)] == chunks


class VirtualSteps:
    """Steps of a scheduler without a model, on a virtual clock: a step takes a time of its own and a time per token.

    clock: milliseconds.
    first: number of prompt tokens that were computed until each request had its first token, from its arrival on.
    """

    def __init__(self, *, on_cpu: bool = True) -> None:
        self._scheduler = Scheduler(on_cpu=on_cpu, max_step=None)
        self.requests: list[Request] = []
        self.prompt_tokens = 0
        self.clock = 0.0
        self.first: dict[Request, int] = {}
        self._arrived: dict[Request, int] = {}

    def add(self, prompt: int, answer: int = 1, **params: Any) -> Request:
        request = Request([0] * prompt, GenerationParams(max_new_tokens=answer, temperature=0.0, **params))
        request.row = next(row for row in range(10_000) if row not in [other.row for other in self.requests])
        self._arrived[request] = self.prompt_tokens
        self.requests.append(request)
        return request

    def step(self) -> list[tuple[Request, Chunk]]:
        plan = self._scheduler.plan(self.requests)
        self.prompt_tokens += sum(len(chunk.ids) for request, chunk in plan if not request.has_output)
        for request, chunk in plan:
            assert (chunk.row, chunk.start) == (request.row, request.computed_tokens)
            assert chunk.ids == request.ids[chunk.start : chunk.end]
            request.computed_tokens = chunk.end
            if chunk.end == len(request.ids):
                self.first.setdefault(request, self.prompt_tokens - self._arrived[request])
                request.ids.append(0)
        self.requests = [request for request in self.requests if not request.finished]
        milliseconds = STEP_MS + TOKEN_MS * tokens_of(plan)
        self._scheduler.record_step_time(milliseconds / 1000, [chunk for _, chunk in plan])
        self.clock += milliseconds
        return plan

    def run_until_first_token(self, request: Request) -> int:
        """Return the number of prompt tokens that were computed from the arrival of ``request`` to its first token."""
        while request not in self.first:
            assert self.step(), "a step without tokens"
        return self.first[request]


def tokens_of(plan: list[tuple[Request, Chunk]]) -> int:
    return sum(len(chunk.ids) for _, chunk in plan)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_question_beside_a_document_is_read_in_the_next_step_which_remains_quick(on_cpu: bool) -> None:
    steps = VirtualSteps(on_cpu=on_cpu)
    document = steps.add(DOCUMENT)
    steps.step()
    question = steps.add(QUESTION)
    plan = steps.step()
    assert question in steps.first
    assert tokens_of(plan) <= QUICK_TOKENS * (1 if on_cpu else ACCELERATOR_FACTOR)
    assert steps.run_until_first_token(document) == DOCUMENT + QUESTION


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_steady_stream_of_questions_leaves_half_of_the_tokens_to_a_document(on_cpu: bool) -> None:
    maximum = PREFILL_BUDGET[1] * (1 if on_cpu else ACCELERATOR_FACTOR)
    steps = VirtualSteps(on_cpu=on_cpu)
    document = steps.add(DOCUMENT)
    questions = []
    while document not in steps.first:
        questions.append(steps.add(QUESTION))
        steps.step()
    assert steps.first[document] <= 2 * DOCUMENT + 2 * maximum
    assert len(questions) > 10
    waits = [steps.first[question] for question in questions[:-2]]
    assert max(waits) <= maximum + 3 * QUESTION


def test_questions_beside_a_document_take_twice_their_time_and_delay_it_by_less_than_a_third() -> None:
    """Steps become short with the first question. Before it, longer ones take less time per token."""
    question_ms = STEP_MS + TOKEN_MS * QUESTION
    alone = VirtualSteps()
    alone.run_until_first_token(alone.add(DOCUMENT))
    later: list[float] = []
    medians: list[float] = []
    for offset in range(0, 800, 16):
        steps = VirtualSteps()
        document = steps.add(DOCUMENT)
        ratios: list[float] = []
        while document not in steps.first:
            moment = 300.0 + offset + 800.0 * len(ratios)
            question = steps.add(QUESTION) if moment <= steps.clock and len(ratios) < QUESTIONS else None
            steps.step()
            if question is not None:
                assert question in steps.first
                ratios.append((steps.clock - moment) / question_ms)
        assert len(ratios) == QUESTIONS
        assert ratios[0] <= (STEP_MS + TOKEN_MS * PREFILL_BUDGET[1]) / question_ms + 1
        assert max(ratios[1:]) <= 3
        assert steps.clock < 1.3 * alone.clock
        later += ratios[1:]
        medians.append(median(ratios))
    assert sum(later) / len(later) <= 1.9
    assert sum(medians) / len(medians) <= 2


def test_steps_are_long_again_when_no_question_has_arrived_for_a_while() -> None:
    steps = VirtualSteps()
    steps.add(DOCUMENT)
    steps.step()
    steps.add(QUESTION)
    steps.step()
    assert tokens_of(steps.step()) < PREFILL_BUDGET[1] / 2
    steps.run_until_first_token(steps.add(DOCUMENT + scheduler.CALM_TOKENS))
    steps.add(DOCUMENT)
    assert tokens_of(steps.step()) == PREFILL_BUDGET[1]


def test_questions_that_arrive_together_share_steps() -> None:
    steps = VirtualSteps()
    questions = [steps.add(20 + 3 * number) for number in range(8)]
    count = 0
    while steps.requests:
        steps.step()
        count += 1
    assert count == 2
    assert set(steps.first) == set(questions)


def test_the_oldest_of_equal_documents_is_finished_first() -> None:
    """Each of them would be as late as the last one if they were read in turns."""
    steps = VirtualSteps()
    documents = [steps.add(1000) for _ in range(3)]
    for number, document in enumerate(documents, 1):
        assert steps.run_until_first_token(document) < number * 1000 + PREFILL_BUDGET[1]


def test_prompts_beside_decoding_requests_are_read_in_turns_within_the_budget() -> None:
    """The step time is unknown, so a step may have the minimum of prompt tokens only."""
    steps = VirtualSteps()
    decoding = [steps.add(5, 1000) for _ in range(3)]
    steps.step()
    document, question = steps.add(200), steps.add(QUESTION)
    while document not in steps.first:
        plan = steps.step()
        assert [request for request, _ in plan[:3]] == decoding
        assert [len(chunk.ids) for _, chunk in plan[:3]] == [1, 1, 1]
        assert tokens_of(plan) <= 16
    assert steps.first[question] <= 2 * QUESTION + 16
    assert steps.first[document] == 200 + QUESTION


PROMPTS = st.one_of(st.integers(1, 60), st.integers(1, 3000))


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(st.lists(st.tuples(PROMPTS, st.integers(1, 5)), max_size=3), max_size=60),
    on_cpu=st.booleans(),
)
def test_no_prompt_waits_for_more_than_twice_the_tokens_before_it(
    arrivals: list[list[tuple[int, int]]], on_cpu: bool
) -> None:
    maximum = PREFILL_BUDGET[1] * (1 if on_cpu else ACCELERATOR_FACTOR)
    steps = VirtualSteps(on_cpu=on_cpu)
    limits = {}
    for prompts in arrivals:
        for prompt, answer in prompts:
            before = sum(other.remaining_tokens for other in steps.requests if not other.decoding)
            limits[steps.add(prompt, answer)] = 2 * (before + prompt) + 3 * maximum
        waiting = [request for request in steps.requests if request.remaining_tokens > 1]
        decoding = [request for request in steps.requests if request.decoding]
        plan = steps.step()
        assert [request for request, _ in plan[: len(decoding)]] == sorted(decoding, key=lambda request: request.row)
        assert all(len(chunk.ids) > 1 for _, chunk in plan[len(decoding) :])
        assert tokens_of(plan[len(decoding) :]) <= maximum
        assert len(plan) > len(decoding) or not waiting
    while steps.requests:
        assert steps.step()
    assert [request for request, limit in limits.items() if steps.first[request] > limit] == []


def test_prompts_whose_logprobs_are_computed_have_a_budget_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MAX_SCORED_TOKENS", 40)
    steps = VirtualSteps()
    for prompt, scored in ((100, True), (100, True), (90, False)):
        steps.add(prompt, prompt_logprobs=scored, logprobs=0 if scored else None)
    while steps.requests:
        plan = steps.step()
        assert sum(len(chunk.ids) for _, chunk in plan if chunk.scored) <= 40
    assert steps.prompt_tokens == 290
