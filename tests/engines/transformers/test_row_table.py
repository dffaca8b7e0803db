"""Tests of the rows of requests and of the reuse of their keys and values, with the one-layer model."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from aiochatstream.engines.transformers import request as request_module
from aiochatstream.engines.transformers import scheduler
from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.engines.transformers.prefix_cache import PrefixCache
from tests.engines.transformers.batch_harness import MakeBatch, OneLayerModel, Submission, ids, lengths
from tests.helpers import PATIENCE


def is_finite(batch: Batch) -> bool:
    """Return True if the KV cache contains no NaN."""
    return all(bool(part.isfinite().all()) for layer in batch.kv_cache.layers for part in layer)


def test_rows_of_similar_lengths_are_neighbours_and_keep_their_tokens_when_they_move(
    make_batch: MakeBatch, manual_model: OneLayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "SIZE_CLASS_TOKENS", 16)
    batch = make_batch(manual_model, rows=6, length=80)
    requests = []
    for seed, length in enumerate([60, 5, 20, 7, 50, 3]):  # one per step, so that the others are decoding already
        requests.append(Submission(batch, ids(length, seed), max_new_tokens=9))
        if not seed:
            manual_model.wait_for_step()
        manual_model.step()
    manual_model.step()
    sizes = [request.size_class for request in sorted(batch.rows.requests, key=lambda request: request.row)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4
    manual_model.run_freely()
    for request in requests:
        assert request.read_all() == manual_model.answer(request.prompt, 9)


def test_the_next_turn_computes_only_its_new_tokens_and_a_repeated_prompt_only_the_last(
    make_batch: MakeBatch, free_model: OneLayerModel
) -> None:
    batch = make_batch(free_model, rows=2, prefix_tokens=1000)
    first = Submission(batch, ids(8), max_new_tokens=3)
    first.read_all()
    following = Submission(batch, first.prompt + first.tokens + ids(4, 1), max_new_tokens=2)
    assert following.read_all() == free_model.answer(following.prompt, 2)
    assert following.request.cached_tokens == 8 + 3 - 1
    repeated = Submission(batch, first.prompt, max_new_tokens=3)
    assert repeated.read_all() == first.tokens
    assert repeated.request.cached_tokens == 8 - 1
    similar = Submission(batch, first.prompt[:5] + ids(6, 2), max_new_tokens=3)
    assert similar.read_all() == free_model.answer(similar.prompt, 3)
    assert similar.request.cached_tokens >= 5
    assert lengths(free_model.steps[3]) == [(10, 5)]
    assert lengths(free_model.steps[5]) == [(7, 1)]
    assert batch.metrics()["prefix_cache_hits_total"] == 3


def test_a_request_that_follows_a_cancelled_answer_reuses_its_tokens(
    make_batch: MakeBatch, manual_model: OneLayerModel
) -> None:
    """Even if another row is free: the answer is retired before the new request is admitted, in the same step."""
    batch = make_batch(manual_model, rows=2, prefix_tokens=1000)
    cancelled = Submission(batch, ids(6), max_new_tokens=20)
    manual_model.wait_for_step()
    manual_model.step()
    retire, submitted = batch.rows.retire_finished, threading.Event()
    following: list[Submission] = []

    def retire_and_submit() -> None:  # the worst moment: after retirement and before admission
        retire()
        if not submitted.is_set():
            cancelled.cancel()
            following.append(Submission(batch, ids(6) + ids(3, 1), max_new_tokens=1))
            submitted.set()

    batch.rows.retire_finished = retire_and_submit  # type: ignore[method-assign]
    manual_model.run_freely()
    assert submitted.wait(PATIENCE)
    assert following[0].read_all() == manual_model.answer(following[0].prompt, 1)
    assert following[0].request.cached_tokens >= 6


def test_answers_larger_than_the_prefix_cache_are_not_stored(make_batch: MakeBatch, free_model: OneLayerModel) -> None:
    batch = make_batch(free_model, prefix_tokens=5)
    Submission(batch, ids(9), max_new_tokens=2).read_all()
    batch.close()
    assert not batch.prefix_cache.reserved
    assert batch.metrics()["prefix_cache_bytes"] == 0


def test_a_row_with_nan_logits_fails_and_leaves_no_nan_in_the_cache(
    make_batch: MakeBatch, free_model: OneLayerModel
) -> None:
    batch = make_batch(free_model, rows=2)

    def corrupt(chunks: list[Any], logits: torch.Tensor) -> torch.Tensor:
        for at, (start, tokens) in enumerate(chunks):
            if start + len(tokens) == 7:
                logits[at] = torch.nan
                for layer in batch.kv_cache.layers:
                    for part in layer:
                        part[1, :, 6] = torch.nan
        return logits

    free_model.change_logits = corrupt
    with batch.wake:
        first = Submission(batch, ids(9, 1), max_new_tokens=20)
        failing = Submission(batch, ids(5, 2), max_new_tokens=20)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        failing.read_all()
    assert first.read_all() == free_model.answer(first.prompt, 20)
    free_model.change_logits = lambda chunks, logits: logits
    with batch.wake:
        later = [Submission(batch, ids(3, seed), max_new_tokens=9) for seed in (4, 5)]
    assert [request.read_all() for request in later] == [free_model.answer(request.prompt, 9) for request in later]
    assert is_finite(batch)


def test_a_row_that_is_cancelled_before_its_logits_are_checked_leaves_no_nan_in_the_cache(
    make_batch: MakeBatch, manual_model: OneLayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (2, 4))
    batch = make_batch(manual_model, rows=1, prefix_tokens=1000)
    cancelled = Submission(batch, ids(12, 1), max_new_tokens=5)
    manual_model.wait_for_step()
    cancelled.cancel()
    for layer in batch.kv_cache.layers:
        for part in layer:
            part[0, :, 11] = torch.nan
    manual_model.run_freely()
    request = Submission(batch, cancelled.prompt[:6], max_new_tokens=3)  # does not reach position 11
    assert request.read_all() == manual_model.answer(request.prompt, 3)
    assert request.request.cached_tokens == 0
    assert is_finite(batch)


@pytest.mark.parametrize("method", ["load", "store"])
def test_errors_of_the_prefix_cache_do_not_affect_other_rows(
    make_batch: MakeBatch, manual_model: OneLayerModel, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    batch = make_batch(manual_model, rows=2, prefix_tokens=1000)
    with batch.wake:
        long = Submission(batch, ids(2, 1), max_new_tokens=12)
        short = Submission(batch, ids(5, 2), max_new_tokens=2)
    manual_model.wait_for_step()
    manual_model.step()

    def fail(*args: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(PrefixCache, method, fail)
        manual_model.step(2)
        assert short.read_all() == manual_model.answer(short.prompt, 2)
        repeated = Submission(batch, short.prompt, max_new_tokens=2)
        manual_model.step(3)
    manual_model.run_freely()
    assert long.read_all() == manual_model.answer(long.prompt, 12)
    if method == "load":
        with pytest.raises(MemoryError):
            repeated.read_all()
    else:
        assert repeated.read_all() == short.tokens
    assert Submission(batch, ids(5, 3), max_new_tokens=2).read_all() == manual_model.answer(ids(5, 3), 2)
