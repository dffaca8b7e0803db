"""Tests of the chunks that steps read, with the one-layer model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aiochatstream.engines.transformers import batch as batch_module
from aiochatstream.engines.transformers import scheduler
from tests.engines.transformers.batch_harness import MakeBatch, OneLayerModel, Submission, ids, lengths


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
        [(8, 1), (4, 1)],
        [(9, 1), (5, 1)],
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
