"""Requests join and leave the running batch at any step, and none changes what another is told.

The model is one of a single layer that steps when the test allows it: what a test says of the order of events does not
hang on the clock.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers import batch as module
from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.engines.transformers.prefix_cache import PrefixPool
from tests.engines.transformers.batch_harness import SIZE, TOKEN_BYTES, VOCABULARY, Asked, OneLayer, batch_of
from tests.helpers import PATIENCE


@pytest.fixture
def model() -> OneLayer:
    """Steps freely."""
    return OneLayer()


@pytest.fixture
def held() -> Iterator[OneLayer]:
    """Steps as it is told to."""
    model = OneLayer(free=False)
    yield model
    model.release()


@pytest.fixture
def made() -> Iterator[Any]:
    """``made(model, ...)`` gives a batch that is closed when the test is over."""
    batches: list[Batch] = []

    def make(model: OneLayer, **options: Any) -> Batch:
        batches.append(batch_of(model, **options))
        return batches[-1]

    yield make
    for batch in batches:
        batch.close()


def ids(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCABULARY), k=length)  # noqa: S311


def lengths(step: list[tuple[int, tuple[int, ...]]]) -> list[tuple[int, int]]:
    """Where each piece starts and how long it is."""
    return [(start, len(read)) for start, read in step]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_an_answer_is_the_models_own(made: Any, model: OneLayer, rows: int, length: int, count: int) -> None:
    asked = Asked(made(model, rows=rows), ids(length), max_new_tokens=count)
    assert asked.rest() == model.answer(asked.prompt, count)
    assert asked.request.reused == 0


@pytest.mark.parametrize("max_new_tokens", [1, 5])
def test_prompt_and_answer_may_fill_a_row_exactly_and_not_more(made: Any, model: OneLayer, max_new_tokens: int) -> None:
    batch = made(model, rows=2, length=16, pool_bytes=100 * TOKEN_BYTES)
    fits = 16 + 1 - max_new_tokens  # the last token is told, but never read
    neighbour = Asked(batch, ids(3, 1), max_new_tokens=14)
    asked = Asked(batch, ids(fits), max_new_tokens=max_new_tokens)
    assert asked.rest() == model.answer(asked.prompt, max_new_tokens)
    with pytest.raises(ValueError, match=f"^{fits + 1} tokens and max_new_tokens={max_new_tokens} do not fit .* 16"):
        Asked(batch, ids(fits + 1), max_new_tokens=max_new_tokens)
    assert neighbour.rest() == model.answer(neighbour.prompt, 14)


def test_who_comes_during_a_step_joins_the_next_one_and_all_rows_share_each_pass(made: Any, held: OneLayer) -> None:
    batch = made(held, rows=2)
    first = Asked(batch, ids(3, 1), max_new_tokens=3)
    held.wait()
    second = Asked(batch, ids(5, 2), max_new_tokens=2)
    held.step()
    held.release()
    first.rest(), second.rest()
    assert [lengths(step) for step in held.steps] == [[(0, 3)], [(3, 1), (0, 5)], [(4, 1), (5, 1)]]
    assert first.tokens == held.answer(first.prompt, 3)
    assert second.tokens == held.answer(second.prompt, 2)


def test_a_row_that_is_free_is_taken_in_the_next_step_and_in_the_order_of_asking(made: Any, held: OneLayer) -> None:
    batch = made(held, rows=1)
    asked = [Asked(batch, ids(2, seed), max_new_tokens=2) for seed in range(3)]
    held.release()
    assert [one.rest() for one in asked] == [held.answer(one.prompt, 2) for one in asked]
    assert [lengths(step) for step in held.steps] == [[(0, 2)], [(2, 1)]] * 3
    assert [tuple(one.prompt) for one in asked] == [step[0][1] for step in held.steps[::2]]


def test_two_with_the_same_prompt_at_once_are_answered_alike(made: Any, held: OneLayer) -> None:
    batch = made(held, rows=2, pool_bytes=100 * TOKEN_BYTES)
    blocker = Asked(batch, ids(2, 9), max_new_tokens=1)
    held.wait()
    twins = [Asked(batch, ids(6), max_new_tokens=4) for _ in range(2)]
    held.release()
    blocker.rest()
    assert [one.rest() for one in twins] == [held.answer(ids(6), 4)] * 2


@pytest.mark.parametrize("when", ["prefilling", "decoding"])
def test_who_is_cancelled_leaves_within_a_step_and_its_row_is_free(
    made: Any, held: OneLayer, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_TOKENS", (4, 4))
    batch = made(held, rows=2)
    with batch._wake:  # both join the first step
        stays = Asked(batch, ids(2, 1), max_new_tokens=20)
        goes = Asked(batch, ids(12 if when == "prefilling" else 3, 2), max_new_tokens=9)
    held.wait()
    held.step()
    goes.cancel()
    held.step()
    begins = len(held.steps) - 1
    waits = Asked(batch, ids(3, 3), max_new_tokens=2)
    held.step()
    assert len(held.steps[begins]) == 1
    assert lengths(held.steps[begins + 1])[1] == (0, 3)
    held.release()
    assert stays.rest() == held.answer(stays.prompt, 20)
    assert waits.rest() == held.answer(waits.prompt, 2)


def test_who_is_cancelled_while_waiting_is_never_read(made: Any, held: OneLayer) -> None:
    batch = made(held, rows=1)
    first = Asked(batch, [1, 1], max_new_tokens=2)
    held.wait()
    goes = Asked(batch, [2, 2], max_new_tokens=2)
    last = Asked(batch, [3, 3], max_new_tokens=2)
    goes.cancel()
    held.release()
    first.rest(), last.rest()
    assert (0, (2, 2)) not in [piece for step in held.steps for piece in step]
    assert last.tokens == held.answer(last.prompt, 2)


def test_closing_the_steps_cancels(made: Any, held: OneLayer) -> None:
    asked = Asked(made(held, rows=1), ids(3), max_new_tokens=9)
    held.wait()
    held.step()
    asked.next()
    asked._steps.close()
    assert asked.request.cancelled


def test_a_long_prompt_is_read_in_pieces_beside_decoding_and_each_step_is_told_of(
    made: Any, held: OneLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_TOKENS", (4, 7))
    monkeypatch.setattr(module, "ROUND_TOKENS", 1)
    told: list[str] = []
    batch = made(held, rows=2, on_step=lambda kind, seconds: told.append(kind))
    decodes = Asked(batch, ids(2, 1), max_new_tokens=6)
    held.wait()
    reads = Asked(batch, ids(9, 2), max_new_tokens=2)
    held.release()
    assert [decodes.next() is not None for _ in range(6)] == [True] * 6
    assert [reads.next() is not None for _ in range(4)] == [False, False, True, True]
    assert [lengths(step) for step in held.steps] == [
        [(0, 2)],
        [(2, 1), (0, 4)],
        [(3, 1), (4, 4)],
        [(4, 1), (8, 1)],
        [(5, 1), (9, 1)],
        [(6, 1)],
    ]
    batch.close()
    assert told == ["prefill", "prefill", "prefill", "decode", "decode", "decode"]


def test_a_prompt_that_disturbs_nobody_is_read_in_the_largest_pieces(
    made: Any, model: OneLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_TOKENS", (2, 7))
    asked = Asked(made(model), ids(16), max_new_tokens=2)
    assert asked.rest() == model.answer(asked.prompt, 2)
    assert [lengths(step) for step in model.steps] == [[(0, 7)], [(7, 7)], [(14, 2)], [(16, 1)]]


@pytest.mark.parametrize(
    ("max_step", "waiting", "budget"),
    [(None, 1, 16), (None, 2, 32), (3 / 64, 1, 32), (3 / 64, 2, 32), (1 / 64, 1, 3), (9.0, 1, 40)],
)
def test_a_step_reads_as_much_of_prompts_as_the_time_for_it_allows(
    made: Any, held: OneLayer, monkeypatch: pytest.MonkeyPatch, max_step: float | None, waiting: int, budget: int
) -> None:
    """A step of one token takes 1/64 s, and each token more 1/1024 s: twice that leaves time for 16."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "PIECE_TOKENS", (3, 40))
    monkeypatch.setattr(module, "ROUND_TOKENS", 1)

    def passes(pieces: list[Any]) -> None:
        clock.now += (15 + sum(len(read) for _, read in pieces)) / 1024

    held.fail = passes
    batch = made(held, rows=3, length=200, max_step=max_step)
    decodes = Asked(batch, ids(12, 1), max_new_tokens=30)
    held.wait()
    held.step(), held.step()
    reads = [Asked(batch, ids(90, 2 + each), max_new_tokens=1) for each in range(waiting)]
    held.step()
    assert lengths(held.steps[-1]) == [(14, 1), (0, budget)]
    held.release()
    decodes.rest(), [one.rest() for one in reads]


def test_a_step_that_disturbs_has_a_usual_size_where_the_prompt_is_long_enough(
    made: Any, held: OneLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_TOKENS", (8, 45))
    monkeypatch.setattr(module, "ROUND_TOKENS", 10)
    batch = made(held, rows=2, length=200, max_step=9.0)
    decodes = Asked(batch, ids(5, 1), max_new_tokens=30)
    held.wait()
    held.step(), held.step()
    reads = Asked(batch, ids(90, 2), max_new_tokens=1)
    held.step(), held.step(), held.step()
    assert [lengths(step)[1] for step in held.steps[-3:]] == [(0, 39), (39, 39), (78, 12)]
    held.release()
    assert reads.rest() == held.answer(reads.prompt, 1)
    assert decodes.rest() == held.answer(decodes.prompt, 30)


def test_rows_of_like_lengths_are_neighbours_and_lose_nothing_when_they_move(
    made: Any, held: OneLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHORT", 16)
    batch = made(held, rows=6, length=80)
    lengths_ = [60, 5, 20, 7, 50, 3]
    asked = []
    for seed, length in enumerate(lengths_):  # one a step: each comes to rows that answer already
        asked.append(Asked(batch, ids(length, seed), max_new_tokens=9))
        if not seed:
            held.wait()
        held.step()
    held.step()
    sizes = [one.size for one in sorted(batch._rows, key=lambda one: one.row)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4
    held.release()
    for one in asked:
        assert one.rest() == held.answer(one.prompt, 9)


def test_the_next_turn_reads_only_its_new_tokens_and_a_repeated_one_only_the_last(made: Any, model: OneLayer) -> None:
    batch = made(model, rows=2, pool_bytes=1000 * TOKEN_BYTES)
    turn = Asked(batch, ids(8), max_new_tokens=3)
    turn.rest()
    follows = Asked(batch, turn.prompt + turn.tokens + ids(4, 1), max_new_tokens=2)
    assert follows.rest() == model.answer(follows.prompt, 2)
    assert follows.request.reused == 8 + 3 - 1
    again = Asked(batch, turn.prompt, max_new_tokens=3)
    assert again.rest() == turn.tokens
    assert again.request.reused == 8 - 1
    shares = Asked(batch, turn.prompt[:5] + ids(6, 2), max_new_tokens=3)
    assert shares.rest() == model.answer(shares.prompt, 3)
    assert shares.request.reused >= 5
    assert lengths(model.steps[3]) == [(10, 5)]
    assert lengths(model.steps[5]) == [(7, 1)]
    assert batch.figures()["prefix_cache_hits_total"] == 3


def test_who_asks_when_an_answer_was_closed_finds_it_kept(made: Any, held: OneLayer) -> None:
    """Also where a row is free already: the new one joins after the old one has left, in the same step."""
    batch = made(held, rows=2, pool_bytes=1000 * TOKEN_BYTES)
    stopped = Asked(batch, ids(6), max_new_tokens=20)
    held.wait()
    held.step()
    leave, told = batch._leave, threading.Event()

    def slow_leave() -> None:  # the answer is closed, and the next asked for, at the worst of times
        leave()
        if not told.is_set():
            stopped.cancel()
            asked.append(Asked(batch, ids(6) + ids(3, 1), max_new_tokens=1))
            told.set()

    asked: list[Asked] = []
    batch._leave = slow_leave
    held.release()
    assert told.wait(PATIENCE)
    assert asked[0].rest() == held.answer(asked[0].prompt, 1)
    assert asked[0].request.reused >= 6


def test_nothing_is_kept_or_copied_without_room_for_it(made: Any, model: OneLayer) -> None:
    batch = made(model, pool_bytes=5 * TOKEN_BYTES)
    Asked(batch, ids(9), max_new_tokens=2).rest()
    batch.close()
    assert not batch._pool.reserved
    assert batch.figures()["prefix_cache_bytes"] == 0


def test_figures_tell_of_rows_and_bytes(made: Any, held: OneLayer) -> None:
    batch = made(held, rows=3, length=20, pool_bytes=1000 * TOKEN_BYTES)
    assert batch.figures()["batch_size"] == 0
    with batch._wake:
        asked = [Asked(batch, ids(4, seed), max_new_tokens=2) for seed in range(2)]
    held.wait()
    held.step()
    assert batch.figures()["batch_size"] == 2
    held.release()
    for one in asked:
        one.rest()
    wait_until_idle(batch)
    batch.close()
    assert batch.figures()["kv_cache_bytes"] == 3 * 20 * TOKEN_BYTES
    assert batch.figures()["prefix_cache_bytes"] == 2 * 5 * TOKEN_BYTES


def test_a_step_that_fails_ends_those_in_it_and_the_next_request_is_served(
    made: Any, held: OneLayer, caplog: pytest.LogCaptureFixture
) -> None:
    batch = made(held, rows=2, pool_bytes=1000 * TOKEN_BYTES)
    with batch._wake:
        asked = [Asked(batch, ids(4, seed), max_new_tokens=9) for seed in range(3)]
    held.wait()
    held.step()
    held.fail = lambda pieces: ZeroDivisionError("the model broke") if len(pieces) == 2 else None
    held.allow(10)
    failures = []
    for one in asked[:2]:
        with pytest.raises(RuntimeError, match=r"A step failed: .*the model broke") as error:
            one.rest()
        failures.append(error.value)
    assert failures[0] is not failures[1]
    held.release()
    assert asked[2].rest() == held.answer(asked[2].prompt, 9)
    assert "the model broke" in caplog.text


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_fails_the_newest_request_alone(made: Any, held: OneLayer, error: Exception) -> None:
    batch = made(held, rows=3)
    with batch._wake:
        old = [Asked(batch, ids(4, seed), max_new_tokens=6) for seed in range(2)]
    held.wait()
    held.fail = lambda pieces: error if len(pieces) > 2 else None
    held.step()
    new = Asked(batch, ids(5, 5), max_new_tokens=6)
    held.release()
    with pytest.raises(MemoryError, match="Out of memory in a step of 3 requests"):
        new.rest()
    assert [one.rest() for one in old] == [held.answer(one.prompt, 6) for one in old]
    later = Asked(batch, ids(5, 5), max_new_tokens=6)
    assert later.rest() == held.answer(later.prompt, 6)


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), KeyboardInterrupt()])
def test_what_ends_the_thread_fails_all_rows_and_those_who_wait_and_later_ones(
    made: Any, held: OneLayer, error: BaseException
) -> None:
    batch = made(held, rows=2)
    with batch._wake:
        asked = [Asked(batch, ids(4, seed), max_new_tokens=9) for seed in range(3)]
    held.wait()
    held.step()
    assert not batch.stopped
    held.fail = lambda pieces: error
    held.release()
    for one in asked:
        with pytest.raises(RuntimeError, match="The engine has stopped: "):
            one.rest()
    assert batch.stopped
    with pytest.raises(RuntimeError, match=r"^The engine has stopped\.$"):
        Asked(batch, ids(2))


def test_out_of_memory_first_costs_what_was_kept(made: Any, model: OneLayer) -> None:
    batch = made(model, pool_bytes=1 << 20)
    Asked(batch, ids(6, 1), max_new_tokens=4).rest()
    again = Asked(batch, ids(6, 1), max_new_tokens=4)
    again.rest()
    assert again.request.reused == 5
    errors = [MemoryError()]
    model.fail = lambda pieces: errors.pop() if errors else None
    asked = Asked(batch, ids(6, 2), max_new_tokens=4)
    assert asked.rest() == model.answer(asked.prompt, 4)
    later = Asked(batch, ids(6, 1), max_new_tokens=4)
    assert later.rest() == model.answer(later.prompt, 4)
    assert later.request.reused == 0


def test_out_of_memory_again_and_again_fails_one_after_the_other_and_the_engine_goes_on(
    made: Any, model: OneLayer
) -> None:
    model.fail = lambda pieces: MemoryError()
    batch = made(model)
    for seed in range(3):
        with pytest.raises(MemoryError):
            Asked(batch, ids(3, seed)).rest()
    model.fail = lambda pieces: None
    assert Asked(batch, ids(3)).rest() == model.answer(ids(3), 4)


def test_a_row_whose_logits_are_no_numbers_fails_and_leaves_nothing_behind(made: Any, model: OneLayer) -> None:
    batch = made(model, rows=2)

    def spoil(pieces: list[Any], logits: torch.Tensor) -> torch.Tensor:
        for at, (start, read) in enumerate(pieces):
            if start + len(read) == 7:
                logits[at] = torch.nan
                for layer in batch._cache.layers:
                    for one in layer:
                        one[1, :, 6] = torch.nan
        return logits

    model.change = spoil
    with batch._wake:
        first = Asked(batch, ids(9, 1), max_new_tokens=20)
        bad = Asked(batch, ids(5, 2), max_new_tokens=20)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        bad.rest()
    assert first.rest() == model.answer(first.prompt, 20)
    model.change = lambda pieces, logits: logits
    with batch._wake:
        both = [Asked(batch, ids(3, seed), max_new_tokens=9) for seed in (4, 5)]
    assert [one.rest() for one in both] == [model.answer(one.prompt, 9) for one in both]
    assert all(one.isfinite().all() for layer in batch._cache.layers for one in layer)


def test_a_row_that_left_before_anyone_looked_at_its_logits_leaves_nothing_behind(
    made: Any, held: OneLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_TOKENS", (2, 4))
    batch = made(held, rows=1, pool_bytes=1000 * TOKEN_BYTES)
    gone = Asked(batch, ids(12, 1), max_new_tokens=5)
    held.wait()
    gone.cancel()
    for layer in batch._cache.layers:
        for one in layer:
            one[0, :, 20] = torch.nan
    held.release()
    asked = Asked(batch, gone.prompt, max_new_tokens=5)
    assert asked.rest() == held.answer(asked.prompt, 5)
    assert asked.request.reused == 0
    assert all(one.isfinite().all() for layer in batch._cache.layers for one in layer)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_row_that_cannot_be_drawn_fails_alone_and_its_neighbours_draw_as_before(
    made: Any, held: OneLayer, which: int
) -> None:
    options: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 5},
        {"temperature": 1.5, "top_k": 8, "seed": 6},
        {"temperature": 1.0, "repetition_penalty": 1.5, "seed": 7},
    ]
    lone = made(OneLayer(), rows=1)
    expected = [Asked(lone, ids(3, seed), max_new_tokens=8, **params).rest() for seed, params in enumerate(options)]
    batch = made(held, rows=4)
    with batch._wake:
        asked = [Asked(batch, ids(3, seed), max_new_tokens=8, **params) for seed, params in enumerate(options)]
        fails = Asked(batch, ids(3, 9), max_new_tokens=8, repetition_penalty=2.0)
        batch._arrivals.rotate(which)  # whichever row it has
    held.wait()
    held.step(), held.step()
    fails.request.sampler = Breaks(fails.request.sampler)  # type: ignore[assignment]
    held.release()
    with pytest.raises(ZeroDivisionError):
        fails.rest()
    assert [one.rest() for one in asked] == expected


class Breaks:
    """A sampler that raises at the last moment: when the others have drawn."""

    def __init__(self, like: Any) -> None:
        self.params, self.greedy, self.whole = like.params, False, False
        self.penalised, self.limited, self.matcher = like.penalised, False, None

    @property
    def number(self) -> float:
        raise ZeroDivisionError

    def advance(self) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("longest", "pieces"), [(-1.0, [16, 8, 4, 2, 2, 2, 2, 2, 2]), (60.0, [16, 16, 8])], ids=["slow", "quick"]
)
def test_steps_that_take_long_read_less_so_that_a_client_that_leaves_is_noticed_soon(
    made: Any, model: OneLayer, monkeypatch: pytest.MonkeyPatch, longest: float, pieces: list[int]
) -> None:
    monkeypatch.setattr(module, "PIECE_TOKENS", (2, 16))
    monkeypatch.setattr(module, "LONGEST_STEP", longest)
    monkeypatch.setattr(module, "SLOWEST", longest)
    asked = Asked(made(model), ids(40), max_new_tokens=1)
    assert asked.rest() == model.answer(asked.prompt, 1)
    assert [length for step in model.steps for _, length in lengths(step)] == pieces


@pytest.mark.parametrize("method", ["read", "put"])
def test_what_cannot_be_copied_for_reuse_harms_no_neighbour(
    made: Any, held: OneLayer, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    batch = made(held, rows=2, pool_bytes=1000 * TOKEN_BYTES)
    with batch._wake:
        stays = Asked(batch, ids(2, 1), max_new_tokens=12)
        ends = Asked(batch, ids(5, 2), max_new_tokens=2)
    held.wait()
    held.step()

    def fail(*args: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(PrefixPool, method, fail)
        held.step(), held.step()
        assert ends.rest() == held.answer(ends.prompt, 2)
        again = Asked(batch, ends.prompt, max_new_tokens=2)
        held.step(), held.step(), held.step()
    held.release()
    assert stays.rest() == held.answer(stays.prompt, 12)
    if method == "read":
        with pytest.raises(MemoryError):
            again.rest()
    else:
        assert again.rest() == ends.tokens
    assert Asked(batch, ids(5, 3), max_new_tokens=2).rest() == held.answer(ids(5, 3), 2)


def test_close_ends_what_is_under_way_and_what_waits_and_later_ones_are_refused(made: Any, held: OneLayer) -> None:
    batch = made(held, rows=1)
    asked = [Asked(batch, ids(3, seed), max_new_tokens=9) for seed in range(2)]
    held.wait()
    closes = threading.Thread(target=batch.close)
    closes.start()
    held.release()
    closes.join(PATIENCE)
    assert not closes.is_alive()
    for one in asked:
        with pytest.raises(RuntimeError, match="closed"):
            one.rest()
    with pytest.raises(RuntimeError, match="closed"):
        Asked(batch, ids(3))
    batch.close()
    assert not batch._thread.is_alive()
    assert batch.figures()["batch_size"] == 0


def test_a_slow_reader_holds_up_nobody(made: Any, model: OneLayer) -> None:
    batch = made(model, rows=2)
    slow = Asked(batch, ids(3, 1), max_new_tokens=9)
    quick = Asked(batch, ids(3, 2), max_new_tokens=30)
    assert quick.rest() == model.answer(quick.prompt, 30)
    assert slow.rest() == model.answer(slow.prompt, 9)


@st.composite
def plans(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Requests that share beginnings, each with the step at which it is asked and, maybe, cancelled."""
    plan = []
    for _ in range(draw(st.integers(1, 8))):
        prompt = ids(draw(st.integers(1, 14)), draw(st.integers(0, 1))) + ids(draw(st.integers(0, 6)), 7)
        plan.append(
            {
                "prompt": prompt,
                "at": draw(st.integers(0, 12)),
                "count": draw(st.integers(1, 8)),
                "cancel": draw(st.none() | st.integers(0, 9)),
                "follow": draw(st.booleans()),
                "params": draw(
                    st.sampled_from(
                        [
                            {},
                            {},
                            {"temperature": 1.3, "seed": 3},
                            {"temperature": 0.8, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.2},
                        ]
                    )
                ),
            }
        )
    return plan


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(1, 4), st.sampled_from([2, 5, 512]), st.sampled_from([0, 25, 1000]))
def test_under_any_schedule_each_answer_is_what_the_model_says_alone(
    plan: list[dict[str, Any]], rows: int, piece: int, room: int
) -> None:
    held, lone_model = OneLayer(free=False), OneLayer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_TOKENS", (piece, piece))
        batch, lone = batch_of(held, rows=rows, pool_bytes=room * TOKEN_BYTES), batch_of(lone_model, rows=1)
        try:
            run(plan, held, batch, rows, room)
            for request in plan:
                asked: Asked = request["asked"]
                alone = Asked(lone, asked.prompt, max_new_tokens=request["count"], **request["params"]).rest()
                if not request["params"]:
                    assert alone == lone_model.answer(asked.prompt, request["count"])
                if asked.request.cancelled and request["cancel"] is not None:
                    told = [token for token in iter_told(asked) if token is not None]
                    assert told == alone[: len(told)]
                else:
                    assert asked.rest() == alone
        finally:
            held.release()
            batch.close()
            lone.close()
    assert sorted(batch._free) == list(range(rows)), "a row was lost"
    assert batch.figures()["batch_size"] == 0


def run(plan: list[dict[str, Any]], held: OneLayer, batch: Batch, rows: int, room: int) -> None:
    """Ask and cancel, each between two steps, until all is over."""
    held_bytes = batch.figures()["kv_cache_bytes"]
    opener = Asked(batch, [0], max_new_tokens=30)
    held.wait()
    cancelled: list[Asked] = []
    for at in range(22):
        for request in plan:
            if request["at"] == at:
                request["asked"] = Asked(batch, request["prompt"], max_new_tokens=request["count"], **request["params"])
            if request["cancel"] is not None and request["at"] + request["cancel"] == at:
                request["asked"].cancel()
                cancelled.append(request["asked"])
        held.step()
        figures = batch.figures()
        assert figures["batch_size"] == len(held.steps[-1]) <= rows or piece_waits(batch)
        assert figures["prefix_cache_bytes"] <= room * TOKEN_BYTES
        assert figures["kv_cache_bytes"] == held_bytes
        assert all(one.request not in batch._rows for one in cancelled), "a cancelled row is still there"
    held.release()
    assert opener.rest() == held.answer([0], 30)
    for request in plan:
        if request["cancel"] is None:
            request["asked"].rest()
        if request["follow"]:
            prompt = [*request["prompt"], *request["asked"].tokens, 1, 2]
            assert Asked(batch, prompt, max_new_tokens=3).rest() == held.answer(prompt, 3)
    Asked(batch, [1]).rest()  # whoever came before has joined, by now
    wait_until_idle(batch)
    batch.close()


def wait_until_idle(batch: Batch) -> None:
    deadline = time.monotonic() + PATIENCE
    while batch.figures()["batch_size"]:
        assert time.monotonic() < deadline, "a row is never free again"
        time.sleep(0.001)


def piece_waits(batch: Batch) -> bool:
    """Whether a prompt is not read in this step, as others take all that may be read."""
    return any(len(one.ids) - one.computed > 1 for one in batch._rows)


def iter_told(asked: Asked) -> Iterator[int | None]:
    while not asked.request.told.empty():
        step = asked.request.told.get()
        if isinstance(step, Exception):
            return
        yield step


assert SIZE * 16 == TOKEN_BYTES
