"""Tests of every kind of cache with requests in any order: answers are those of ``model.generate`` for the request
alone, whichever requests arrive, end, fail, share memory or wait for it beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiochatstream.engines.base import TokenLogprob
from aiochatstream.engines.transformers import scheduler
from aiochatstream.engines.transformers.prefix_cache import SHARED
from tests.engines.transformers.prefix_cache_harness import paths
from tests.engines.transformers.schedule_harness import (
    ANSWER_LENGTH,
    BLOCKS_PER_ROW,
    FAMILIES,
    STEP_TOKENS,
    TEXTS,
    Cancel,
    Entry,
    Fail,
    Forget,
    Memory,
    Run,
    RunOutOfMemory,
    Share,
    Step,
    Submit,
    TinyModel,
)
from tests.engines.transformers.tiny_models import assert_same

EXAMPLES = int(os.environ.get("SCHEDULE_EXAMPLES", "4"))
"""Number of schedules for each model."""


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Iterator[TinyModel]:
    model = TinyModel(request.param)
    yield model
    model.engine.close()


OWNERS = st.sampled_from(["anna", "anna", "bob"])
SUBMISSIONS = st.builds(
    Submit,
    base=st.none() | st.integers(0, 3),
    removed_tokens=st.sampled_from([0, 0, 0, 1, 2, ANSWER_LENGTH, 20]),
    text=st.integers(0, len(TEXTS) - 1),
    new_tokens=st.sampled_from([0, 1, 2, 9, 21, 26, 42, 58, 100]),
    count=st.integers(1, ANSWER_LENGTH),
    owner=OWNERS,
    scored=st.sampled_from([False, False, False, True]),
    failures=st.sampled_from([0, 0, 0, 0, 1, 2, 9]),
    steps=st.sampled_from([0, 0, 1, 2, 4, 7, 12]),
)
RECENT = st.integers(0, 3)
EVENTS = st.one_of(
    *[SUBMISSIONS] * 5,
    st.builds(Step, st.integers(1, 20)),
    st.builds(Share),
    st.builds(Cancel, RECENT),
    st.builds(Forget, OWNERS),
    st.builds(Fail, RECENT, st.sampled_from([0, 1, 1, 2, 9])),
    st.builds(RunOutOfMemory),
)
MEMORIES = st.builds(
    Memory,
    rows=st.sampled_from([4, 3, 2, 1]),
    blocks=st.integers(BLOCKS_PER_ROW, 2 * BLOCKS_PER_ROW),
    max_blocks=st.sampled_from([0, 3, 2 * BLOCKS_PER_ROW, 2 * BLOCKS_PER_ROW]),
    snapshots=st.integers(0, 4),
    kernel=st.integers(0, 1),
)


@example(
    Memory(rows=4, blocks=16, max_blocks=16, snapshots=1, kernel=0),
    [
        Submit(None, 0, 0, 9, 6, steps=1),
        Submit(None, 0, 1, 1, 6),
        Submit(None, 0, 2, 1, 6),
        Submit(None, 0, 2, 9, 6),
        Fail(1, 1),
    ],
)  # a prompt of one token in a failed pass, between rows that are computed from their first token
@settings(max_examples=EXAMPLES, deadline=None)
@given(MEMORIES, st.lists(EVENTS, min_size=4, max_size=20))
def test_answers_are_those_of_generate_in_any_schedule_and_no_memory_is_lost(
    model: TinyModel, memory: Memory, events: list[Any]
) -> None:
    run = Run(model, memory)
    with pytest.MonkeyPatch.context() as patch, closing(run.batch):
        patch.setattr(scheduler, "PREFILL_BUDGET", (STEP_TOKENS, STEP_TOKENS))
        for event in events:
            event.apply(run)
        run.finish()
    for entry in run.entries:
        assert_exact(model, entry)
    assert_nothing_lost(run)


@pytest.mark.parametrize("kernel", [0, 1])
def test_a_row_that_is_computed_again_does_not_change_the_blocks_that_others_read(
    model: TinyModel, kernel: int
) -> None:
    run = Run(model, Memory(rows=2, blocks=16, max_blocks=16, snapshots=2, kernel=kernel))
    with closing(run.batch):
        first = TEXTS[0][:37]
        run.submit(first, 3, "anna")
        run.step(3)
        run.submit(first + model.answer(first)[:3] + TEXTS[1][:9], 3, "anna", failures=1)
        request = run.entries[-1].request
        shared = [block.number for block in request.cached_blocks]
        assert len(shared) == 2
        places = [block * 16 + at for block in shared for at in range(16)]
        parts = [part for layer in run.batch.kv_cache.layers for part in layer]
        before = [part[:, places].clone() for part in parts]
        run.finish()
        assert all(torch.equal(part[:, places], copy) for part, copy in zip(parts, before, strict=True))
    assert_exact(model, run.entries[-1])
    assert_nothing_lost(run)


def assert_exact(model: TinyModel, entry: Entry) -> None:
    """Assert that an answer is complete, unless the request was cancelled or may have failed, and that it is exact."""
    request, tokens = entry.request, entry.tokens
    assert entry.error is None or entry.may_fail, f"another request's error: {entry.error!r}"
    expected = model.answer(entry.prompt)[: len(tokens)]
    assert_same(model.plain, entry.prompt, tokens, expected)
    if not request.cancelled:
        assert len(tokens) == request.params.max_new_tokens
    prompt_logprobs, logprobs = request.prompt_logprobs, list(request.logprobs)
    if request.params.prompt_logprobs and tokens:
        assert [logprob.token_id for logprob in prompt_logprobs] == entry.prompt[1:]
        assert_close(prompt_logprobs, model.logprobs(entry.prompt))
    if tokens == expected:
        assert_close(logprobs[: len(tokens)], model.logprobs(entry.prompt)[len(entry.prompt) - 1 :])


def assert_close(logprobs: Iterable[TokenLogprob], expected: Iterable[float]) -> None:
    """Assert that logprobs are the first ones of ``expected``. A wrong one shows an error that tokens may hide."""
    for logprob, value in zip(logprobs, expected, strict=False):
        assert logprob.logprob == pytest.approx(value, abs=1e-3)


def assert_nothing_lost(run: Run) -> None:
    """Assert that all rows, blocks and snapshots are free or in the prefix cache, and free when it is empty."""
    batch, cache = run.batch, run.batch.prefix_cache
    assert not batch.stopped
    assert sorted(batch.rows.free_rows) == [*range(run.memory.rows)], "a row is lost"
    nodes = [path[-1] for path in paths(cache)]
    assert not any(block.users for block in nodes)
    assert cache.unused == len(nodes) <= run.memory.max_blocks
    assert cache.pool.free + cache.unused == cache.pool.count, "a block is lost"
    for owner in ("anna", "bob", SHARED):
        cache.forget(owner)
    assert cache.pool.free == cache.pool.count
    assert len(set(batch.kv_cache.states._free)) == run.memory.snapshots, "a snapshot is lost"
