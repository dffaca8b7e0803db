"""Tests of the rows of requests and of the reuse of their keys and values, with the one-layer model."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from aiochatstream.engines.transformers import scheduler
from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.engines.transformers.kv_cache import KVCache
from aiochatstream.engines.transformers.prefix_cache import PrefixCache, PrefixMatch
from tests.engines.transformers.batch_harness import (
    MakeBatch,
    OneLayerModel,
    Submission,
    ids,
    lengths,
    wait_until_idle,
)
from tests.helpers import PATIENCE


def is_finite(batch: Batch) -> bool:
    """Return True if the KV cache contains no NaN."""
    return all(bool(part.isfinite().all()) for layer in batch.kv_cache.layers for part in layer)


def close(batch: Batch) -> None:
    """Close an idle batch, which has all its rows and blocks."""
    wait_until_idle(batch)
    batch.close()
    assert batch.rows.free_rows == sorted({*batch.rows.free_rows}), "a row is free twice"
    assert len(batch.rows.free_rows) == len(batch.kv_cache.tables), "a row is lost"
    assert batch.prefix_cache.pool.free + batch.prefix_cache.unused == batch.kv_cache.blocks, "a block is lost"


def places_of(batch: Batch, submission: Submission, position: int) -> int:
    """Return the place of a token of a running request in the KV cache."""
    return int(batch.kv_cache.places(submission.request.row, position, position + 1)[0])


def test_a_request_needs_only_the_memory_of_its_prompt_and_answer(
    make_batch: MakeBatch, manual_model: OneLayerModel
) -> None:
    batch = make_batch(manual_model, rows=16, length=64, tokens=4 * 64)
    with batch.wake:
        requests = [Submission(batch, ids(5, seed), max_new_tokens=12) for seed in range(16)]
    manual_model.wait_for_step()
    assert len(manual_model.steps[0]) == 16
    assert batch.metrics()["kv_cache_free_tokens"] == 0
    manual_model.run_freely()
    assert [request.read_all() for request in requests] == [manual_model.answer(ids(5, seed), 12) for seed in range(16)]
    close(batch)


def test_a_request_may_fill_the_whole_cache_and_evicts_all_prefixes(
    make_batch: MakeBatch, free_model: OneLayerModel
) -> None:
    batch = make_batch(free_model, rows=2, length=32, tokens=32, prefix_tokens=1000)
    for seed in range(3):
        Submission(batch, ids(9, seed), max_new_tokens=3).read_all()
    assert batch.metrics()["prefix_cache_tokens"] > 0
    request = Submission(batch, ids(20, 9), max_new_tokens=13)
    assert request.read_all() == free_model.answer(request.prompt, 13)
    repeated = Submission(batch, ids(9, 2), max_new_tokens=3)
    assert repeated.read_all() == free_model.answer(repeated.prompt, 3)
    assert repeated.request.cached_tokens == 0
    close(batch)


def test_requests_wait_for_memory_in_their_order_and_run_when_others_end(
    make_batch: MakeBatch, manual_model: OneLayerModel
) -> None:
    batch = make_batch(manual_model, rows=4, length=64, tokens=64)
    running = Submission(batch, ids(25, 1), max_new_tokens=4)
    manual_model.wait_for_step()
    large, small = Submission(batch, ids(30, 2), max_new_tokens=9), Submission(batch, ids(1, 3), max_new_tokens=2)
    manual_model.run_freely()
    for request in (running, large, small):
        assert request.read_all() == manual_model.answer(request.prompt, request.request.params.max_new_tokens)
    starts = [[start for start, _ in step] for step in manual_model.steps]
    assert starts[:5] == [[0], [25], [26], [27], [0, 0]]
    close(batch)


def test_a_waiting_request_is_compared_with_the_cache_again_only_when_another_one_ends(
    make_batch: MakeBatch, manual_model: OneLayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(manual_model, rows=4, length=64, tokens=64, prefix_tokens=1000)
    with batch.wake:
        longer = Submission(batch, ids(9, 1), max_new_tokens=20)
        shorter = Submission(batch, ids(9, 3), max_new_tokens=8)
    manual_model.wait_for_step()
    matches: list[int] = []
    match = batch.prefix_cache.match

    def count(ids: list[int], owner: str, shared_tokens: int) -> PrefixMatch:
        matches.append(len(manual_model.steps))
        return match(ids, owner, shared_tokens)

    monkeypatch.setattr(batch.prefix_cache, "match", count)
    waiting = Submission(batch, ids(9, 3) + ids(21, 4), max_new_tokens=5)
    manual_model.step(12)
    assert matches == [1, 8]
    assert [start for start, _ in manual_model.steps[8]] == [16, 8]
    manual_model.run_freely()
    for request in (longer, shorter, waiting):
        assert request.read_all() == manual_model.answer(request.prompt, request.request.params.max_new_tokens)
    close(batch)


def test_a_waiting_request_that_is_cancelled_makes_way_for_later_ones(
    make_batch: MakeBatch, manual_model: OneLayerModel
) -> None:
    batch = make_batch(manual_model, rows=4, length=64, tokens=64)
    running = Submission(batch, ids(25, 1), max_new_tokens=8)
    manual_model.wait_for_step()
    large, small = Submission(batch, ids(30, 2), max_new_tokens=9), Submission(batch, ids(1, 3), max_new_tokens=2)
    manual_model.step()
    large.cancel()
    manual_model.step()
    assert lengths(manual_model.steps[-1]) == [(26, 1), (0, 1)]
    manual_model.run_freely()
    assert small.read_all() == manual_model.answer(small.prompt, 2)
    assert running.read_all() == manual_model.answer(running.prompt, 8)
    close(batch)


def test_a_partly_cached_block_is_given_up_if_its_memory_is_needed(
    make_batch: MakeBatch, free_model: OneLayerModel
) -> None:
    batch = make_batch(free_model, rows=2, length=16, tokens=16, prefix_tokens=1000)
    Submission(batch, ids(6), max_new_tokens=1).read_all()
    request = Submission(batch, [*ids(5), 7, 7], max_new_tokens=10)
    assert request.read_all() == free_model.answer(request.prompt, 10)
    assert request.request.cached_tokens == 4
    shorter = Submission(batch, [*ids(5), 7, 7], max_new_tokens=5)
    assert shorter.read_all() == free_model.answer(request.prompt, 5)
    assert shorter.request.cached_tokens == 6
    close(batch)


def test_running_requests_keep_the_prefixes_that_others_evict_or_forget(
    make_batch: MakeBatch, manual_model: OneLayerModel
) -> None:
    batch = make_batch(manual_model, rows=2, length=32, tokens=32, prefix_tokens=1000)
    manual_model.allow(2)
    first = Submission(batch, ids(9), max_new_tokens=2)
    first.read_all()
    following = Submission(batch, [*ids(9), 3], max_new_tokens=7)
    for _ in range(3):
        manual_model.wait_for_step()
    other = Submission(batch, ids(13, 5), max_new_tokens=4)
    manual_model.step(2)
    batch.forget("")
    manual_model.run_freely()
    assert following.read_all() == manual_model.answer(following.prompt, 7)
    assert other.read_all() == manual_model.answer(other.prompt, 4)
    assert following.request.cached_tokens == 9
    repeated = Submission(batch, ids(9), max_new_tokens=2)
    assert repeated.read_all() == first.tokens
    assert repeated.request.cached_tokens == 0
    close(batch)


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


def test_an_answer_larger_than_the_prefix_cache_is_stored_up_to_its_size(
    make_batch: MakeBatch, free_model: OneLayerModel
) -> None:
    batch = make_batch(free_model, prefix_tokens=9)
    Submission(batch, ids(9), max_new_tokens=5).read_all()
    following = Submission(batch, ids(12), max_new_tokens=5)
    assert following.read_all() == free_model.answer(following.prompt, 5)
    assert following.request.cached_tokens == 8
    close(batch)
    assert batch.metrics()["prefix_cache_tokens"] == 8


def test_a_row_with_nan_logits_fails_and_leaves_no_nan_in_the_cache(
    make_batch: MakeBatch, free_model: OneLayerModel
) -> None:
    batch = make_batch(free_model, rows=2, tokens=64, prefix_tokens=1000)
    corrupted: list[int] = []

    def corrupt(chunks: list[Any], logits: torch.Tensor) -> torch.Tensor:
        for at, (start, tokens) in enumerate(chunks):
            if start + len(tokens) == 7:
                logits[at] = torch.nan
                corrupted.append(places_of(batch, failing, 6))
                for layer in batch.kv_cache.layers:
                    for part in layer:
                        part[:, corrupted[-1]] = torch.nan
        return logits

    free_model.change_logits = corrupt
    with batch.wake:
        first = Submission(batch, ids(9, 1), max_new_tokens=20)
        failing = Submission(batch, ids(5, 2), max_new_tokens=20)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        failing.read_all()
    assert first.read_all() == free_model.answer(first.prompt, 20)
    assert corrupted
    assert is_finite(batch)
    free_model.change_logits = lambda chunks, logits: logits
    with batch.wake:  # in all blocks
        later = [Submission(batch, ids(3, seed), max_new_tokens=30) for seed in (4, 5)]
    assert [request.read_all() for request in later] == [free_model.answer(request.prompt, 30) for request in later]
    assert is_finite(batch)
    close(batch)


def test_a_row_that_is_cancelled_before_its_logits_are_checked_leaves_no_nan_in_the_cache(
    make_batch: MakeBatch, manual_model: OneLayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (2, 4))
    batch = make_batch(manual_model, rows=1, length=16, prefix_tokens=1000)
    cancelled = Submission(batch, ids(12, 1), max_new_tokens=5)
    manual_model.wait_for_step()
    cancelled.cancel()
    for layer in batch.kv_cache.layers:
        for part in layer:
            part[:, places_of(batch, cancelled, 7)] = torch.nan
    manual_model.run_freely()
    request = Submission(batch, cancelled.prompt[:6], max_new_tokens=2)  # does not reach position 7, in its last block
    assert request.read_all() == manual_model.answer(request.prompt, 2)
    assert request.request.cached_tokens == 0
    assert is_finite(batch)
    close(batch)


@pytest.mark.parametrize("method", ["assign", "copy_block"])
def test_a_request_that_cannot_be_admitted_fails_alone_and_loses_no_memory(
    make_batch: MakeBatch, manual_model: OneLayerModel, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    batch = make_batch(manual_model, rows=2, tokens=64, prefix_tokens=1000)
    with batch.wake:
        long = Submission(batch, ids(2, 1), max_new_tokens=12)
        short = Submission(batch, ids(6, 2), max_new_tokens=2)
    manual_model.wait_for_step()
    manual_model.step(3)
    assert short.read_all() == manual_model.answer(short.prompt, 2)

    def fail(*args: Any, **options: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, method, fail)
        failing = Submission(batch, short.prompt, max_new_tokens=2)
        manual_model.step(2)
    manual_model.run_freely()
    with pytest.raises(MemoryError):
        failing.read_all()
    assert long.read_all() == manual_model.answer(long.prompt, 12)
    repeated = Submission(batch, short.prompt, max_new_tokens=2)
    assert repeated.read_all() == short.tokens
    assert repeated.request.cached_tokens == 5
    close(batch)


@pytest.mark.parametrize(("owner", "method"), [(KVCache, "clear"), (PrefixCache, "_save_states")])
def test_a_request_that_cannot_be_retired_loses_no_memory_and_fails_no_other(
    make_batch: MakeBatch,
    manual_model: OneLayerModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    method: str,
) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_BUDGET", (4, 4))
    batch = make_batch(manual_model, rows=2, tokens=64, prefix_tokens=1000)
    manual_model.allow(4)
    first = Submission(batch, ids(9), max_new_tokens=2)
    first.read_all()
    following = Submission(batch, ids(9) + ids(8, 1), max_new_tokens=1)
    for _ in range(5):
        manual_model.wait_for_step()
    assert following.request.cached_blocks
    original, failures = getattr(owner, method), list[int]()

    def fail(*args: Any) -> None:
        if not failures:
            failures.append(1)
            raise MemoryError
        original(*args)

    monkeypatch.setattr(owner, method, fail)
    if method == "clear":
        following.cancel()
    manual_model.run_freely()
    repeated = Submission(batch, ids(9), max_new_tokens=2)
    assert repeated.read_all() == first.tokens
    assert repeated.request.cached_tokens == 8
    assert "could not be cached or cleared" in caplog.text
    close(batch)
