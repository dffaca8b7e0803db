"""Tests of continuous batching: requests join and leave at any step and do not influence one another.

A one-layer model steps when the test allows it, so that the order of events does not depend on the clock.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers import scheduler
from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.engines.transformers.sampler import Sampler
from tests.engines.transformers.batch_harness import (
    TOKEN_BYTES,
    MakeBatch,
    OneLayerModel,
    Submission,
    batch_of,
    ids,
    lengths,
    wait_until_idle,
)
from tests.helpers import PATIENCE


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_greedy_answers_are_those_of_the_model(
    make_batch: MakeBatch, free_model: OneLayerModel, rows: int, length: int, count: int
) -> None:
    request = Submission(make_batch(free_model, rows=rows), ids(length), max_new_tokens=count)
    assert request.read_all() == free_model.answer(request.prompt, count)
    assert request.request.cached_tokens == 0


@pytest.mark.parametrize("max_new_tokens", [1, 5])
def test_prompt_and_answer_may_fill_a_row_exactly_and_not_more(
    make_batch: MakeBatch, free_model: OneLayerModel, max_new_tokens: int
) -> None:
    batch = make_batch(free_model, rows=2, length=16, prefix_tokens=100)
    fits = 16 + 1 - max_new_tokens  # the last token is returned, but never computed
    other = Submission(batch, ids(3, 1), max_new_tokens=14)
    request = Submission(batch, ids(fits), max_new_tokens=max_new_tokens)
    assert request.read_all() == free_model.answer(request.prompt, max_new_tokens)
    with pytest.raises(ValueError, match=f"^{fits + 1} tokens and max_new_tokens={max_new_tokens} do not fit .* 16"):
        Submission(batch, ids(fits + 1), max_new_tokens=max_new_tokens)
    assert other.read_all() == free_model.answer(other.prompt, 14)


def test_a_request_during_a_step_joins_the_next_step_and_all_rows_share_a_forward_pass(
    make_batch: MakeBatch, manual_model: OneLayerModel
) -> None:
    batch = make_batch(manual_model, rows=2)
    first = Submission(batch, ids(3, 1), max_new_tokens=3)
    manual_model.wait_for_step()
    second = Submission(batch, ids(5, 2), max_new_tokens=2)
    manual_model.step()
    manual_model.run_freely()
    assert first.read_all() == manual_model.answer(first.prompt, 3)
    assert second.read_all() == manual_model.answer(second.prompt, 2)
    assert [lengths(step) for step in manual_model.steps] == [[(0, 3)], [(3, 1), (0, 5)], [(4, 1), (5, 1)]]


def test_free_rows_are_reused_in_the_next_step_and_in_the_order_of_submission(
    make_batch: MakeBatch, manual_model: OneLayerModel
) -> None:
    batch = make_batch(manual_model, rows=1)
    requests = [Submission(batch, ids(2, seed), max_new_tokens=2) for seed in range(3)]
    manual_model.run_freely()
    assert [request.read_all() for request in requests] == [
        manual_model.answer(request.prompt, 2) for request in requests
    ]
    assert [lengths(step) for step in manual_model.steps] == [[(0, 2)], [(2, 1)]] * 3
    assert [tuple(request.prompt) for request in requests] == [step[0][1] for step in manual_model.steps[::2]]


def test_concurrent_requests_with_the_same_prompt_have_the_same_answer(
    make_batch: MakeBatch, manual_model: OneLayerModel
) -> None:
    batch = make_batch(manual_model, rows=2, prefix_tokens=100)
    blocker = Submission(batch, ids(2, 9), max_new_tokens=1)
    manual_model.wait_for_step()
    twins = [Submission(batch, ids(6), max_new_tokens=4) for _ in range(2)]
    manual_model.run_freely()
    blocker.read_all()
    assert [twin.read_all() for twin in twins] == [manual_model.answer(ids(6), 4)] * 2


@pytest.mark.parametrize("state", ["prefilling", "decoding"])
def test_a_cancelled_request_leaves_within_a_step_and_frees_its_row(
    make_batch: MakeBatch, manual_model: OneLayerModel, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (4, 4))
    batch = make_batch(manual_model, rows=2)
    with batch.wake:  # both join the first step
        other = Submission(batch, ids(2, 1), max_new_tokens=20)
        cancelled = Submission(batch, ids(12 if state == "prefilling" else 3, 2), max_new_tokens=9)
    manual_model.wait_for_step()
    manual_model.step()
    cancelled.cancel()
    manual_model.step()
    first = len(manual_model.steps) - 1
    waiting = Submission(batch, ids(3, 3), max_new_tokens=2)
    manual_model.step()
    assert len(manual_model.steps[first]) == 1
    assert lengths(manual_model.steps[first + 1])[1] == (0, 3)
    manual_model.run_freely()
    assert other.read_all() == manual_model.answer(other.prompt, 20)
    assert waiting.read_all() == manual_model.answer(waiting.prompt, 2)


def test_a_request_that_is_cancelled_while_waiting_is_never_computed(
    make_batch: MakeBatch, manual_model: OneLayerModel
) -> None:
    batch = make_batch(manual_model, rows=1)
    first = Submission(batch, [1, 1], max_new_tokens=2)
    manual_model.wait_for_step()
    cancelled = Submission(batch, [2, 2], max_new_tokens=2)
    last = Submission(batch, [3, 3], max_new_tokens=2)
    cancelled.cancel()
    manual_model.run_freely()
    first.read_all()
    assert last.read_all() == manual_model.answer(last.prompt, 2)
    assert (0, (2, 2)) not in [chunk for step in manual_model.steps for chunk in step]


def test_closing_the_steps_cancels_the_request(make_batch: MakeBatch, manual_model: OneLayerModel) -> None:
    request = Submission(make_batch(manual_model, rows=1), ids(3), max_new_tokens=9)
    manual_model.wait_for_step()
    manual_model.step()
    request.next()
    request.close()
    assert request.request.cancelled


def test_metrics_report_rows_and_bytes(make_batch: MakeBatch, manual_model: OneLayerModel) -> None:
    batch = make_batch(manual_model, rows=3, length=20, prefix_tokens=1000)
    assert batch.metrics()["batch_size"] == 0
    with batch.wake:
        requests = [Submission(batch, ids(4, seed), max_new_tokens=2) for seed in range(2)]
    manual_model.wait_for_step()
    manual_model.step()
    assert batch.metrics()["batch_size"] == 2
    assert batch.metrics()["kv_cache_used_tokens"] == 2 * 8, "for 4 + 2 - 1 tokens each"
    manual_model.run_freely()
    for request in requests:
        request.read_all()
    wait_until_idle(batch)
    batch.close()
    metrics = batch.metrics()
    assert metrics["kv_cache_bytes"] == 3 * 20 * TOKEN_BYTES
    assert (metrics["prefix_cache_tokens"], metrics["kv_cache_used_tokens"]) == (2 * 8, 0), "whole blocks"
    assert metrics["prefix_cache_bytes"] == 2 * 8 * TOKEN_BYTES
    assert metrics["kv_cache_free_tokens"] == 3 * 20 - 2 * 8


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_a_row_whose_sampling_fails_does_not_change_the_draws_of_others(
    make_batch: MakeBatch, manual_model: OneLayerModel, position: int
) -> None:
    options: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 5},
        {"temperature": 1.5, "top_k": 8, "seed": 6},
        {"temperature": 1.0, "repetition_penalty": 1.5, "seed": 7},
    ]
    lone = make_batch(OneLayerModel(), rows=1)
    expected = [
        Submission(lone, ids(3, seed), max_new_tokens=8, **params).read_all() for seed, params in enumerate(options)
    ]
    batch = make_batch(manual_model, rows=4)
    requests = []
    with batch.wake:
        for seed, params in [*enumerate(options[:position]), (9, None), *enumerate(options[position:], position)]:
            requests.append(Submission(batch, ids(3, seed), max_new_tokens=8, **(params or {"repetition_penalty": 2})))
    manual_model.wait_for_step()
    manual_model.step(2)
    failing = requests.pop(position)
    failing.request.sampler = FailingSampler(failing.request.sampler)
    manual_model.run_freely()
    with pytest.raises(ZeroDivisionError):
        failing.read_all()
    assert [request.read_all() for request in requests] == expected


class FailingSampler(Sampler):
    """A sampler without a random number."""

    def __init__(self, like: Sampler) -> None:
        super().__init__(like.params.model_copy(update={"temperature": 1.0, "top_k": 5}))
        self.counts = Counter(like.counts)

    def __getattribute__(self, name: str) -> Any:
        if name == "number":
            raise ZeroDivisionError
        return super().__getattribute__(name)


def test_close_fails_running_and_waiting_requests_and_rejects_later_ones(
    make_batch: MakeBatch, manual_model: OneLayerModel
) -> None:
    threads = set(threading.enumerate())
    batch = make_batch(manual_model, rows=1)
    requests = [Submission(batch, ids(3, seed), max_new_tokens=9) for seed in range(2)]
    manual_model.wait_for_step()
    closing = threading.Thread(target=batch.close)
    closing.start()
    manual_model.run_freely()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    for request in requests:
        with pytest.raises(RuntimeError, match="closed"):
            request.read_all()
    with pytest.raises(RuntimeError, match="closed"):
        Submission(batch, ids(3))
    batch.close()
    assert set(threading.enumerate()) <= threads
    assert batch.metrics()["batch_size"] == 0


def test_a_slow_reader_does_not_delay_other_requests(make_batch: MakeBatch, free_model: OneLayerModel) -> None:
    batch = make_batch(free_model, rows=2)
    slow = Submission(batch, ids(3, 1), max_new_tokens=9)
    fast = Submission(batch, ids(3, 2), max_new_tokens=30)
    assert fast.read_all() == free_model.answer(fast.prompt, 30)
    assert slow.read_all() == free_model.answer(slow.prompt, 9)


@dataclass
class PlannedRequest:
    """A request of a random schedule, and the steps at which it is submitted and possibly cancelled."""

    prompt: list[int]
    submit_at: int
    count: int
    cancel_at: int | None
    continued: bool
    params: dict[str, Any]
    _submissions: list[Submission] = field(default_factory=list)

    @property
    def submission(self) -> Submission:
        return self._submissions[0]

    def submit(self, batch: Batch) -> None:
        self._submissions.append(Submission(batch, self.prompt, max_new_tokens=self.count, **self.params))


PARAMS: list[dict[str, Any]] = [
    {},
    {},
    {"temperature": 1.3, "seed": 3},
    {"temperature": 0.8, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.2},
]


LENGTH = 40
"""Maximum number of tokens of a request."""


@st.composite
def schedules(draw: st.DrawFn) -> list[PlannedRequest]:
    """Requests with common prefixes."""
    requests = []
    for _ in range(draw(st.integers(1, 8))):
        prompt = ids(draw(st.integers(1, 14)), draw(st.integers(0, 1))) + ids(draw(st.integers(0, 6)), 7)
        submit_at = draw(st.integers(0, 12))
        delay = draw(st.none() | st.integers(0, 9))
        cancel_at = None if delay is None else submit_at + delay
        count, continued = draw(st.integers(1, 8)), draw(st.booleans())
        requests.append(PlannedRequest(prompt, submit_at, count, cancel_at, continued, draw(st.sampled_from(PARAMS))))
    return requests


@settings(max_examples=20, deadline=None)
@given(
    schedule=schedules(),
    rows=st.integers(1, 4),
    chunk=st.sampled_from([2, 5, 512]),
    tokens=st.sampled_from([LENGTH, LENGTH + 16, 4 * LENGTH]),
    prefix_tokens=st.sampled_from([0, 25, 1000]),
)
def test_answers_are_independent_of_the_schedule_and_of_the_memory(
    schedule: list[PlannedRequest], rows: int, chunk: int, tokens: int, prefix_tokens: int
) -> None:
    model, lone_model = OneLayerModel(waits=True), OneLayerModel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "PREFILL_BUDGET", (chunk, chunk))
        batch = batch_of(model, rows=rows, length=LENGTH, tokens=tokens, prefix_tokens=prefix_tokens)
        lone = batch_of(lone_model, rows=1)
        try:
            run(schedule, model, batch, rows, prefix_tokens)
            for planned in schedule:
                expected = Submission(lone, planned.prompt, max_new_tokens=planned.count, **planned.params).read_all()
                if not planned.params:
                    assert expected == lone_model.answer(planned.prompt, planned.count)
                if planned.submission.request.cancelled and planned.cancel_at is not None:
                    read = list(unread_tokens(planned.submission))
                    assert read == expected[: len(read)]
                else:
                    assert planned.submission.read_all() == expected
        finally:
            model.run_freely()
            batch.close()
            lone.close()
    assert sorted(batch.rows.free_rows) == list(range(rows)), "a row was lost"
    assert batch.prefix_cache.pool.free + batch.prefix_cache.unused == batch.kv_cache.blocks, "a block was lost"
    assert batch.metrics()["batch_size"] == 0


def run(schedule: list[PlannedRequest], model: OneLayerModel, batch: Batch, rows: int, prefix_tokens: int) -> None:
    """Submit and cancel requests between steps, and read all answers."""
    cache_bytes = batch.metrics()["kv_cache_bytes"]
    first = Submission(batch, [0], max_new_tokens=30)
    model.wait_for_step()
    cancelled: list[Submission] = []
    for at in range(22):
        for planned in schedule:
            if planned.submit_at == at:
                planned.submit(batch)
            if planned.cancel_at == at:
                planned.submission.cancel()
                cancelled.append(planned.submission)
        model.step()
        metrics = batch.metrics()
        assert metrics["batch_size"] == len(model.steps[-1]) <= rows or is_prompt_waiting(batch)
        assert metrics["prefix_cache_bytes"] <= prefix_tokens * TOKEN_BYTES
        assert metrics["kv_cache_bytes"] == cache_bytes
        assert all(submission.request not in batch.rows.requests for submission in cancelled), (
            "a cancelled request has a row"
        )
    model.run_freely()
    assert first.read_all() == model.answer([0], 30)
    for planned in schedule:
        if planned.cancel_at is None:
            planned.submission.read_all()
        if planned.continued:
            prompt = [*planned.prompt, *planned.submission.tokens, 1, 2]
            assert Submission(batch, prompt, max_new_tokens=3).read_all() == model.answer(prompt, 3)
    Submission(batch, [1]).read_all()  # all earlier requests were admitted before this one
    wait_until_idle(batch)
    batch.close()


def is_prompt_waiting(batch: Batch) -> bool:
    """Return True if a prompt has no chunk in this step because others use the whole budget."""
    return any(len(request.ids) - request.computed_tokens > 1 for request in batch.rows.requests)


def unread_tokens(submission: Submission) -> Iterator[int]:
    output = submission.request.output
    while not output.empty():
        step = output.get()
        if isinstance(step, Exception):
            return
        if step is not None:
            yield step
