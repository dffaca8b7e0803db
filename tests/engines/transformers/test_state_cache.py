"""Tests of states: their slots and snapshots, and steps that change them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.state_cache import Mixer, RowStates, StateCache, StateKey, StepStates

ROWS, SIZE, KERNEL = 4, 3, 2
CPU, DOUBLE = torch.device("cpu"), torch.float64
CONV: StateKey = ("conv", 0, 0)
RECURRENT: StateKey = ("recurrent", 5, 1)
LIKE = {
    CONV: torch.zeros(1, SIZE, KERNEL, dtype=DOUBLE),
    RECURRENT: torch.zeros(1, SIZE, dtype=DOUBLE),
}


def sum_inputs(hidden: torch.Tensor, states: RowStates) -> torch.Tensor:
    """Return the sums of all earlier inputs, and of the latest ones, as modules with states compute them."""
    inputs = states.update_conv_state(hidden.transpose(1, 2), 0)
    latest = inputs.unfold(2, KERNEL, 1).sum(-1)[..., -hidden.shape[1] :].transpose(1, 2)
    sums = states.get_recurrent_state(5, 1)[:, None] + hidden.cumsum(1)
    if hidden.shape[1] == 1:  # in place, as fused kernels do
        states.get_recurrent_state(5, 1).copy_(sums[:, -1])
    else:
        states.update_recurrent_state(sums[:, -1], 5, 1)
    return torch.cat([sums, latest], dim=2)


def expected_sums(inputs: torch.Tensor) -> torch.Tensor:
    """Return the results of :func:`sum_inputs` for all inputs of a row, [tokens, size]."""
    before = torch.cat([inputs.new_zeros(KERNEL - 1, SIZE), inputs])
    return torch.cat([inputs.cumsum(0), before.unfold(0, KERNEL, 1).sum(-1)], dim=1)


def run_step(
    cache: StateCache, chunks: list[Chunk], inputs: torch.Tensor, padding: int = 0, mixer: Mixer = sum_inputs
) -> torch.Tensor:
    """Compute a step. ``inputs`` are those of all rows, [rows, tokens, size]; the padding is NaN."""
    packed = [inputs[chunk.row, chunk.start : chunk.end] for chunk in chunks]
    hidden = torch.cat([*packed, torch.full((padding, SIZE), torch.nan, dtype=DOUBLE)])[None]
    step = StepStates(cache, chunks, CPU)
    with step.advance():
        return step.mix(mixer, hidden)[0]


def chunk_of(row: int, start: int, count: int) -> Chunk:
    return Chunk(row, start, [1] * count)


token_counts = st.dictionaries(st.integers(0, ROWS - 1), st.sampled_from([1, 1, 1, 2, 5]), min_size=1)
resets = st.sets(st.integers(0, ROWS - 1), max_size=1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(token_counts, resets), min_size=1, max_size=8), st.sampled_from([0, 3]))
def test_each_row_is_computed_with_its_own_states(
    schedule: list[tuple[dict[int, int], set[int]]], padding: int
) -> None:
    cache = StateCache(LIKE, ROWS)
    for tensor in cache.tensors.values():
        tensor.fill_(torch.nan)  # from an earlier request
    inputs = torch.randn(ROWS, 50, SIZE, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    lengths = dict.fromkeys(range(ROWS), 0)
    for counts, new_rows in schedule:
        lengths |= dict.fromkeys(new_rows, 0)  # another request takes the row
        chunks = [chunk_of(row, lengths[row], count) for row, count in sorted(counts.items())]
        chunks.sort(key=lambda chunk: len(chunk.ids) > 1)
        actual = run_step(cache, chunks, inputs, padding)
        expected = [expected_sums(inputs[chunk.row])[chunk.start : chunk.end] for chunk in chunks]
        assert torch.allclose(actual[: actual.shape[0] - padding], torch.cat(expected))
        assert not actual[actual.shape[0] - padding :].any()
        lengths |= {chunk.row: chunk.end for chunk in chunks}


def test_a_row_continues_from_a_snapshot() -> None:
    cache = StateCache(LIKE, ROWS, snapshots=1)
    inputs = torch.randn(ROWS, 9, SIZE, dtype=DOUBLE)
    run_step(cache, [chunk_of(0, 0, 4)], inputs)
    snapshot = cache.save(0)
    assert snapshot is not None
    assert snapshot.tokens == 4
    run_step(cache, [chunk_of(0, 4, 1)], inputs)  # the snapshot remains as it is
    inputs[2, :4] = inputs[0, :4]
    cache.load(snapshot, 2)
    actual = run_step(cache, [chunk_of(2, 4, 5)], inputs)
    assert torch.allclose(actual, expected_sums(inputs[2])[4:9])


def test_the_number_of_snapshots_is_limited_until_some_are_freed() -> None:
    cache = StateCache(LIKE, ROWS, snapshots=2)
    assert cache.save(0) is None, "a row without tokens was saved"
    inputs = torch.zeros(ROWS, 3, SIZE, dtype=DOUBLE)
    run_step(cache, [chunk_of(0, 0, 3)], inputs)
    first, second = cache.save(0), cache.save(0)
    assert first is not None
    assert second is not None
    assert first.slot != second.slot
    assert min(first.slot, second.slot) >= ROWS
    assert cache.save(0) is None
    cache.free(first)
    assert cache.save(0) == first


def test_a_snapshot_that_cannot_be_copied_remains_free(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = StateCache(LIKE, ROWS, snapshots=1)
    run_step(cache, [chunk_of(0, 0, 3)], torch.zeros(ROWS, 3, SIZE, dtype=DOUBLE))
    with monkeypatch.context() as patch:
        patch.setattr(cache, "tensors", {CONV: None})
        with pytest.raises(TypeError):
            cache.save(0)
    assert cache.save(0) is not None


def test_rows_of_a_failed_step_must_start_again() -> None:
    cache = StateCache(LIKE, ROWS)
    inputs = torch.randn(ROWS, 6, SIZE, dtype=DOUBLE)
    run_step(cache, [chunk_of(0, 0, 3), chunk_of(1, 0, 2)], inputs)

    def fail(hidden: torch.Tensor, states: RowStates) -> torch.Tensor:
        sum_inputs(hidden, states)
        raise MemoryError

    with pytest.raises(MemoryError):
        run_step(cache, [chunk_of(1, 2, 1)], inputs, mixer=fail)
    with pytest.raises(ValueError, match=r"^row 1: the states are those of 0 tokens, not of 2"):
        run_step(cache, [chunk_of(1, 2, 1)], inputs)
    actual = run_step(cache, [chunk_of(0, 3, 1), chunk_of(1, 0, 3)], inputs)
    expected = [expected_sums(inputs[0])[3:4], expected_sums(inputs[1])[:3]]
    assert torch.allclose(actual, torch.cat(expected))


def test_models_without_states_have_an_empty_cache() -> None:
    cache = StateCache({}, ROWS, snapshots=1)
    assert not cache
    assert cache.size == 0
    with StepStates(cache, [chunk_of(0, 7, 1)], CPU).advance():
        pass


def test_the_size_includes_all_states() -> None:
    assert StateCache(LIKE, ROWS, snapshots=2).size == (ROWS + 2) * (SIZE * KERNEL + SIZE) * 8
