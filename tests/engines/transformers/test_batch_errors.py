"""Tests of errors in forward passes: only the requests that cause them fail, and all other answers stay exact."""

from __future__ import annotations

import functools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers import batch as batch_module
from aiochatstream.engines.transformers import scheduler
from aiochatstream.engines.transformers.batch import Batch
from tests.engines.transformers.batch_harness import (
    ChunkTokens,
    MakeBatch,
    OneLayerModel,
    Submission,
    batch_of,
    ids,
    wait_until_idle,
)
from tests.engines.transformers.engine_harness import answer, load_engine
from tests.engines.transformers.tiny_models import BYTES, assert_same, reference, some_ids, tiny

COUNT = SPACING = 4
"""Maximum length of an answer, and difference between the lengths of two prompts: the end of a chunk identifies its
request."""

WHOLE_PROMPTS = (128, 128)
"""Budget of a step that contains all prompts."""

FIRST_LENGTH = 2
"""Length of the first prompt. A single token would decode already while the others wait."""


def prompt(number: int) -> list[int]:
    return ids(FIRST_LENGTH + SPACING * number, number)


def tokens_of(chunks: list[ChunkTokens]) -> list[tuple[int, int]]:
    """Return for each chunk the number of its request and the number of the token that follows it."""
    return [divmod(start + len(tokens) - FIRST_LENGTH, SPACING) for start, tokens in chunks]


def numbers(chunks: list[ChunkTokens]) -> set[int]:
    """Return the numbers of the requests whose chunks these are."""
    return {number for number, _ in tokens_of(chunks)}


def submit(batch: Batch, count: int, **params: Any) -> list[Submission]:
    """Submit requests that are in the same step, in the order of their rows."""
    with batch.wake:
        return [Submission(batch, prompt(number), **params) for number in range(count)]


def assert_exact(model: OneLayerModel, submissions: list[Submission]) -> None:
    for submission in submissions:
        count = submission.request.params.max_new_tokens
        assert submission.read_all() == model.answer(submission.prompt, count)


def assert_fails(submission: Submission, tokens: int) -> None:
    """Assert that a request fails after some tokens."""
    with pytest.raises(RuntimeError, match=r"A step failed: ZeroDivisionError\('row'\)"):
        submission.read_all()
    assert len(submission.tokens) == tokens


@pytest.mark.parametrize("position", range(8))
def test_halves_find_the_row_that_causes_an_error(
    make_batch: MakeBatch, free_model: OneLayerModel, position: int, caplog: pytest.LogCaptureFixture
) -> None:
    batch = make_batch(free_model, rows=8, length=80)
    free_model.error_for = lambda chunks: ZeroDivisionError("row") if (position, 1) in tokens_of(chunks) else None
    submissions = submit(batch, 8)
    assert_fails(submissions.pop(position), 1)
    assert_exact(free_model, submissions)
    assert [len(step) for step in free_model.steps[:2]] == [8, 8]
    assert sorted(len(step) for step in free_model.steps[2:8]) == [1, 1, 2, 2, 4, 4]
    assert [len(step) for step in free_model.steps[8:]] == [7, 7]
    assert caplog.text.count("Traceback") == 1


@pytest.mark.parametrize(("rows", "passes"), [(1, 2), (2, 3), (3, 5), (8, 15)])
def test_a_broken_model_fails_all_requests_in_few_passes(
    make_batch: MakeBatch, free_model: OneLayerModel, rows: int, passes: int
) -> None:
    failures = 0

    def error_for(chunks: list[ChunkTokens]) -> Exception | None:
        nonlocal failures
        breaks = len(chunks) == rows and all(len(tokens) == 1 for _, tokens in chunks)
        failures += breaks or failures > 0
        return ZeroDivisionError("row") if failures else None

    free_model.error_for = error_for
    batch = make_batch(free_model, rows=rows, length=80)
    errors = []
    for submission in submit(batch, rows, max_new_tokens=20):
        with pytest.raises(RuntimeError, match="A step failed: ZeroDivisionError") as error:
            submission.read_all()
        errors.append(error.value)
    assert len({id(error) for error in errors}) == rows, "each request has its own exception"
    assert failures == passes
    free_model.error_for = lambda chunks: None
    assert_exact(free_model, submit(batch, rows))


@pytest.mark.parametrize(("rows", "passes"), [(1, 2), (2, 3), (5, 3)])
@pytest.mark.parametrize("at", [0, 2])
def test_an_error_that_does_not_repeat_fails_no_request(
    make_batch: MakeBatch, free_model: OneLayerModel, rows: int, passes: int, at: int
) -> None:
    free_model.error_for = lambda chunks: ZeroDivisionError("row") if len(free_model.steps) == at + 1 else None
    assert_exact(free_model, submit(make_batch(free_model, rows=rows), rows, max_new_tokens=4))
    assert len(free_model.steps) == 3 + passes


@pytest.mark.parametrize("together", [{0, 1}, {0, 3}, {1, 2}, {0, 1, 2, 3}])
def test_an_error_of_a_combination_of_rows_fails_no_request(
    make_batch: MakeBatch, free_model: OneLayerModel, together: set[int]
) -> None:
    free_model.error_for = lambda chunks: ZeroDivisionError("row") if together <= numbers(chunks) else None
    assert_exact(free_model, submit(make_batch(free_model, rows=4), 4))


def test_out_of_memory_in_a_half_fails_its_newest_request(make_batch: MakeBatch, free_model: OneLayerModel) -> None:
    errors: dict[int, Exception] = {4: ZeroDivisionError("row"), 2: MemoryError()}
    free_model.error_for = lambda chunks: errors.pop(len(chunks), None)
    submissions = submit(make_batch(free_model, rows=4), 4)
    with pytest.raises(MemoryError, match="Out of memory in a step of 2 requests"):
        submissions.pop(1).read_all()
    assert_exact(free_model, submissions)


@dataclass(frozen=True)
class Faults:
    """Errors of a schedule.

    failing: tokens of requests, by number, whose forward pass always raises.
    invalid: the same for passes whose logits are NaN.
    pairs: requests that cannot be computed together.
    """

    failing: dict[int, int]
    invalid: dict[int, int]
    pairs: set[frozenset[int]]

    def error_for(self, chunks: list[ChunkTokens]) -> Exception | None:
        present = numbers(chunks)
        failing = any(self.failing.get(number) == token for number, token in tokens_of(chunks))
        return ZeroDivisionError("row") if failing or any(pair <= present for pair in self.pairs) else None

    def change_logits(self, chunks: list[ChunkTokens], logits: torch.Tensor) -> torch.Tensor:
        for at, (number, token) in enumerate(tokens_of(chunks)):
            if self.invalid.get(number) == token:
                logits[at] = torch.nan
        return logits

    def tokens_before(self, number: int, count: int) -> int:
        """Return the number of tokens that a request has before it fails; ``count`` if it does not."""
        return min(faults.get(number, count) for faults in (self.failing, self.invalid))


NUMBERS = st.integers(0, 5)
FAULTS = st.builds(
    Faults,
    st.dictionaries(NUMBERS, st.integers(0, COUNT - 1), max_size=6),
    st.dictionaries(NUMBERS, st.integers(0, COUNT - 1), max_size=2),
    st.sets(st.frozensets(NUMBERS, min_size=2, max_size=3), max_size=2),
)
PARAMS: list[dict[str, Any]] = [{}, {}, {"temperature": 1.3, "seed": 3}, {"temperature": 0.8, "top_k": 9, "seed": 4}]


@settings(max_examples=60, deadline=None)
@given(FAULTS, st.lists(st.sampled_from(PARAMS), min_size=1, max_size=6), st.integers(1, 6))
def test_requests_fail_at_their_own_errors_only_and_no_token_is_computed_twice(
    faults: Faults, params: list[dict[str, Any]], rows: int
) -> None:
    model, lone_model = OneLayerModel(), OneLayerModel()
    passes: list[tuple[list[tuple[int, int]], bool]] = []

    def error_for(chunks: list[ChunkTokens]) -> Exception | None:
        error = faults.error_for(chunks)
        passes.append((tokens_of(chunks), error is None))
        return error

    model.error_for, model.change_logits = error_for, faults.change_logits
    with (
        pytest.MonkeyPatch.context() as patch,
        closing(batch_of(model, rows=rows)) as batch,
        closing(batch_of(lone_model, rows=1)) as lone,
    ):
        patch.setattr(scheduler, "PREFILL_BUDGET", WHOLE_PROMPTS)
        with batch.wake:
            submissions = [
                Submission(batch, prompt(number), max_new_tokens=COUNT, **options)
                for number, options in enumerate(params)
            ]
        for number, submission in enumerate(submissions):
            expected = Submission(lone, prompt(number), max_new_tokens=COUNT, **params[number]).read_all()
            before = faults.tokens_before(number, COUNT)
            if before < COUNT:
                with pytest.raises((RuntimeError, FloatingPointError)):
                    submission.read_all()
            assert submission.read_all() == expected[:before]
        wait_until_idle(batch)
    assert sorted(batch.rows.free_rows) == list(range(rows)), "a row was lost"
    successes = Counter(chunk for chunks, succeeded in passes for chunk in chunks if succeeded)
    assert set(successes.values()) <= {1}
    failures = Counter(chunk for chunks, succeeded in passes for chunk in chunks if not succeeded)
    assert max(failures.values(), default=0) <= max(2, 1 + (rows - 1).bit_length())


@pytest.mark.parametrize("family", ["Qwen2", "LFM2", "Mamba 2"])
def test_an_error_in_the_last_layer_of_a_model_does_not_change_other_answers(family: str) -> None:
    """The passes that fail have changed the keys, values and states of all rows in the earlier layers."""
    model = tiny(family)
    prompts = [some_ids(5 + 40 * number, number) for number in range(4)]
    prompts.append(prompts[1][:9])
    expected = [reference(model, prompt) for prompt in prompts]
    marker = next(token for token in range(259, len(BYTES)) if all(token not in tokens for tokens in expected))
    failing = [*prompts[1][:9], marker, *prompts[1][9:]]
    marked = False

    def look_for_marker(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        nonlocal marked
        marked = bool((inputs[0] == marker).any())

    def fail(module: torch.nn.Module, inputs: Any) -> None:
        if marked:
            raise ZeroDivisionError("row")

    with closing(load_engine(model, slots=4)) as engine, ThreadPoolExecutor(5) as threads:
        model.get_input_embeddings().register_forward_pre_hook(look_for_marker)
        model.get_output_embeddings().register_forward_pre_hook(fail)
        complete = functools.partial(answer, engine, ignore_eos=True)
        failed = threads.submit(complete, failing)
        actual = list(threads.map(complete, prompts[:4]))
        with pytest.raises(RuntimeError, match=r"A step failed: ZeroDivisionError\('row'\)"):
            failed.result()
        actual.append(complete(prompts[4]))
    for prompt, tokens, expected_tokens in zip(prompts, actual, expected, strict=True):
        assert_same(model, prompt, tokens, expected_tokens)


def test_a_device_that_is_lost_stops_the_engine(
    make_batch: MakeBatch, free_model: OneLayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "is_usable", lambda device: False)
    free_model.error_for = lambda chunks: torch.AcceleratorError("CUDA error: device-side assert triggered")
    batch = make_batch(free_model, rows=2)
    for submission in submit(batch, 3):
        with pytest.raises(RuntimeError, match="The engine has stopped: AcceleratorError"):
            submission.read_all()
    assert len(free_model.steps) == 1
    assert batch.stopped
    with pytest.raises(RuntimeError, match=r"^The engine has stopped\.$"):
        Submission(batch, ids(2))


def test_a_device_that_is_lost_while_rows_are_cleared_stops_the_engine(
    make_batch: MakeBatch, free_model: OneLayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(free_model, rows=2)
    monkeypatch.setattr(batch_module, "is_usable", lambda device: False)

    def fail() -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    batch.rows.retire_finished = fail  # type: ignore[method-assign]
    for submission in submit(batch, 2):
        with pytest.raises(RuntimeError, match="The engine has stopped: AcceleratorError"):
            submission.read_all()
    assert batch.stopped


def test_an_error_outside_forward_passes_fails_all_rows(make_batch: MakeBatch, free_model: OneLayerModel) -> None:
    batch = make_batch(free_model, rows=2)
    complete = batch._complete
    failures = [ZeroDivisionError("row")]

    def fail(*args: Any) -> list[Any]:
        if failures:
            raise failures.pop()
        return complete(*args)

    batch._complete = fail  # type: ignore[method-assign, assignment]
    submissions = submit(batch, 3)
    for submission in submissions[:2]:
        assert_fails(submission, 0)
    assert_exact(free_model, submissions[2:])


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_fails_only_the_newest_request(
    make_batch: MakeBatch, manual_model: OneLayerModel, error: Exception
) -> None:
    batch = make_batch(manual_model, rows=3)
    with batch.wake:
        old = [Submission(batch, ids(4, seed), max_new_tokens=6) for seed in range(2)]
    manual_model.wait_for_step()
    manual_model.error_for = lambda chunks: error if len(chunks) > 2 else None
    manual_model.step()
    new = Submission(batch, ids(5, 5), max_new_tokens=6)
    manual_model.run_freely()
    with pytest.raises(MemoryError, match="Out of memory in a step of 3 requests"):
        new.read_all()
    assert [request.read_all() for request in old] == [manual_model.answer(request.prompt, 6) for request in old]
    later = Submission(batch, ids(5, 5), max_new_tokens=6)
    assert later.read_all() == manual_model.answer(later.prompt, 6)


def test_the_batch_survives_repeated_out_of_memory_errors(make_batch: MakeBatch, free_model: OneLayerModel) -> None:
    free_model.error_for = lambda chunks: MemoryError()
    batch = make_batch(free_model)
    for seed in range(3):
        with pytest.raises(MemoryError):
            Submission(batch, ids(3, seed)).read_all()
    free_model.error_for = lambda chunks: None
    assert Submission(batch, ids(3)).read_all() == free_model.answer(ids(3), 4)


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), KeyboardInterrupt()])
def test_an_error_that_ends_the_thread_fails_running_waiting_and_later_requests(
    make_batch: MakeBatch, manual_model: OneLayerModel, error: BaseException
) -> None:
    batch = make_batch(manual_model, rows=2)
    with batch.wake:
        requests = [Submission(batch, ids(4, seed), max_new_tokens=9) for seed in range(3)]
    manual_model.wait_for_step()
    manual_model.step()
    assert not batch.stopped
    manual_model.error_for = lambda chunks: error
    manual_model.run_freely()
    for request in requests:
        with pytest.raises(RuntimeError, match="The engine has stopped: "):
            request.read_all()
    assert batch.stopped
    with pytest.raises(RuntimeError, match=r"^The engine has stopped\.$"):
        Submission(batch, ids(2))
