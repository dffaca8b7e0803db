"""Tests of rows whose grammar masks are late: they delay no other row, and their answers stay exact."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream import Constraint
from aiochatstream.engines.transformers import batch as batch_module
from aiochatstream.engines.transformers.grammar_process import ProcessEnded, Rejected
from aiochatstream.engines.transformers.grammars import Grammars, Matcher
from aiochatstream.errors import InvalidValue
from tests.engines.transformers.batch_harness import (
    VOCABULARY,
    MakeBatch,
    OneLayerModel,
    Submission,
    batch_of,
    ids,
    wait_until_idle,
)
from tests.helpers import PATIENCE


class ManualGrammar:
    """A grammar process whose masks are computed when the test says so.

    requests: arguments of all requests.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[Any, ...]] = []
        self._reply: Future[bytes] = Future()
        self.matcher = Matcher(cast(Grammars, self), Constraint("regex", ".*"), 0)

    def process(self) -> ManualGrammar:
        return self

    def request(self, *arguments: Any, cpu_seconds: float) -> Future[bytes]:
        self.requests.append(arguments)
        self._reply = Future()
        return self._reply

    def finish(self, answer: int) -> None:
        pass

    def allow(self, *tokens: int) -> None:
        """Let the current mask allow ``tokens``; all, if there are none."""
        bits = np.zeros(64, np.uint8)
        bits[list(tokens) or range(VOCABULARY)] = 1
        self._reply.set_result(np.packbits(bits, bitorder="little").tobytes())

    def fail(self, error: Exception) -> None:
        self._reply.set_exception(error)


def read(request: Submission, grammar: ManualGrammar) -> list[int]:
    """Read an answer to its end, and allow all tokens as soon as a mask is missing."""
    while len(request.tokens) < request.request.params.max_new_tokens:
        if not grammar.matcher.ready:
            grammar.allow()
        request.next()
    return request.tokens


@pytest.fixture
def grammar() -> ManualGrammar:
    return ManualGrammar()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the thread wait for masks without a limit that matters, so that each step has a reason."""
    monkeypatch.setattr(batch_module, "MASK_WAIT_SECONDS", 10 * PATIENCE)


def test_other_rows_get_all_their_tokens_while_a_mask_is_computed(
    make_batch: MakeBatch, free_model: OneLayerModel, grammar: ManualGrammar
) -> None:
    batch = make_batch(free_model, rows=3)
    with batch.wake:
        slow = Submission(batch, ids(5, 1), grammar.matcher, max_new_tokens=6)
        others = [Submission(batch, ids(3, 2 + seed), max_new_tokens=20) for seed in range(2)]
    assert [other.read_all() for other in others] == [free_model.answer(other.prompt, 20) for other in others]
    assert grammar.requests == [("start", 0, "regex", ".*", [])]
    grammar.allow(7)
    while not slow.tokens:
        slow.next()
    assert slow.tokens == [7]
    assert grammar.requests[1:] == [("advance", 0, 7)]
    later = Submission(batch, ids(4, 9), max_new_tokens=5)
    assert later.read_all() == free_model.answer(later.prompt, 5)
    assert read(slow, grammar) == [7, *free_model.answer([*slow.prompt, 7], 5)]


def test_a_row_that_waits_for_its_mask_is_not_computed_again(
    make_batch: MakeBatch, free_model: OneLayerModel, grammar: ManualGrammar
) -> None:
    """A recurrent state would change."""
    batch = make_batch(free_model, rows=2)
    with batch.wake:
        slow = Submission(batch, ids(5, 1), grammar.matcher, max_new_tokens=3)
        other = Submission(batch, ids(5, 2), max_new_tokens=9)
    other.read_all()
    assert read(slow, grammar) == free_model.answer(slow.prompt, 3)
    chunks = Counter(chunk for step in free_model.steps for chunk in step)
    assert len(chunks) == 3 + 9
    assert set(chunks.values()) == {1}


@pytest.mark.usefixtures("patient")
def test_the_thread_sleeps_until_the_mask_is_ready(
    make_batch: MakeBatch, free_model: OneLayerModel, grammar: ManualGrammar
) -> None:
    """Each round of the thread is a step without a token: one for each other request that cannot be admitted."""
    batch = make_batch(free_model, rows=1)
    slow = Submission(batch, ids(5, 1), grammar.matcher, max_new_tokens=2)
    assert slow.next() is None
    waiting = []
    for seed in range(3):
        waiting.append(Submission(batch, ids(3, seed), max_new_tokens=2))
        assert slow.next() is None
    grammar.allow()
    assert slow.next() is not None
    assert read(slow, grammar) == free_model.answer(slow.prompt, 2)
    assert [request.read_all() for request in waiting] == [free_model.answer(ids(3, seed), 2) for seed in range(3)]


@pytest.mark.usefixtures("patient")
def test_a_request_that_arrives_while_all_rows_wait_for_masks_is_answered(
    make_batch: MakeBatch, free_model: OneLayerModel, grammar: ManualGrammar
) -> None:
    batch = make_batch(free_model, rows=2)
    slow = Submission(batch, ids(5, 1), grammar.matcher, max_new_tokens=2)
    assert slow.next() is None
    arrival = Submission(batch, ids(3, 2), max_new_tokens=4)
    assert arrival.read_all() == free_model.answer(arrival.prompt, 4)
    assert read(slow, grammar) == free_model.answer(slow.prompt, 2)


def test_a_client_that_leaves_while_its_mask_is_computed_frees_its_row_and_nothing_is_cached(
    make_batch: MakeBatch, free_model: OneLayerModel, grammar: ManualGrammar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest logits may be NaN, so the keys and values must not be reused."""
    monkeypatch.setattr(batch_module, "MASK_WAIT_SECONDS", 0.001)
    batch = make_batch(free_model, rows=1, prefix_tokens=1000)
    slow = Submission(batch, ids(9, 1), grammar.matcher, max_new_tokens=5)
    grammar.allow(3)
    while not slow.tokens:
        slow.next()
    assert [slow.next(), slow.next()] == [None, None]
    slow.close()
    wait_until_idle(batch)
    later = Submission(batch, ids(9, 1), max_new_tokens=3)
    assert later.read_all() == free_model.answer(later.prompt, 3)
    assert later.request.cached_tokens == 0


@pytest.mark.usefixtures("patient")
def test_a_grammar_process_that_ends_is_replaced_while_other_rows_go_on(
    make_batch: MakeBatch, free_model: OneLayerModel, grammar: ManualGrammar
) -> None:
    batch = make_batch(free_model, rows=2)
    slow = Submission(batch, ids(5, 1), grammar.matcher, max_new_tokens=4)
    grammar.allow(7)
    while not slow.tokens:
        slow.next()
    grammar.fail(ProcessEnded())
    other = Submission(batch, ids(3, 2), max_new_tokens=9)
    assert other.read_all() == free_model.answer(other.prompt, 9)
    assert grammar.requests[1:] == [("advance", 0, 7), ("start", 0, "regex", ".*", [7])]
    assert read(slow, grammar) == [7, *free_model.answer([*slow.prompt, 7], 3)]


@pytest.mark.parametrize(
    ("errors", "reason"),
    [([Rejected("too  many\nitems.")], "too many items"), ([ProcessEnded()] * 2, "the grammar is too complex")],
    ids=["rejected", "ended twice"],
)
@pytest.mark.usefixtures("patient")
def test_a_mask_that_fails_late_fails_only_its_own_answer(
    make_batch: MakeBatch, free_model: OneLayerModel, grammar: ManualGrammar, errors: list[Exception], reason: str
) -> None:
    batch = make_batch(free_model, rows=2)
    with batch.wake:
        slow = Submission(batch, ids(5, 1), grammar.matcher, max_new_tokens=4)
        other = Submission(batch, ids(3, 2), max_new_tokens=40)
    assert slow.next() is None
    for number, error in enumerate(errors):
        while len(grammar.requests) == number:
            slow.next()
        grammar.fail(error)
    with pytest.raises(InvalidValue, match=f"^constraint: the answer cannot continue: {reason}"):
        slow.read_all()
    assert other.read_all() == free_model.answer(other.prompt, 40)


@pytest.mark.usefixtures("patient")
def test_closing_the_batch_fails_a_row_that_waits_for_its_mask(
    make_batch: MakeBatch, free_model: OneLayerModel, grammar: ManualGrammar
) -> None:
    batch = make_batch(free_model, rows=1)
    slow = Submission(batch, ids(5, 1), grammar.matcher)
    assert slow.next() is None
    batch.close()
    with pytest.raises(RuntimeError, match="The engine was closed"):
        slow.read_all()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_answers_are_exact_in_any_order_of_masks(data: st.DataObject) -> None:
    model = OneLayerModel()
    batch = batch_of(model, rows=4, prefix_tokens=100)
    grammars = [ManualGrammar() for _ in range(3)]
    prompts = [ids(data.draw(st.integers(1, 20)), seed) for seed in range(3)]
    requests = [
        Submission(batch, prompt, grammar.matcher, max_new_tokens=3)
        for prompt, grammar in zip(prompts, grammars, strict=True)
    ]
    plain = Submission(batch, ids(6, 7), max_new_tokens=8)
    expected: list[list[int]] = [[] for _ in grammars]
    for at in data.draw(st.permutations([0, 1, 2] * 3)):
        token = data.draw(st.none() | st.integers(0, VOCABULARY - 1))
        if token is None:
            grammars[at].allow()
            expected[at] += model.answer([*prompts[at], *expected[at]], 1)
        else:
            grammars[at].allow(token)
            expected[at].append(token)
        while len(requests[at].tokens) < len(expected[at]):
            requests[at].next()
    assert [request.tokens for request in requests] == expected
    assert plain.read_all() == model.answer(plain.prompt, 8)
    batch.close()
