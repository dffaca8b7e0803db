"""A packed step's attention, compared with plain attention over each row alone; the slot cache is written in place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers import attention
from aiochatstream.engines.transformers.packed_step import Chunk, PackedStep
from aiochatstream.engines.transformers.kv_cache import KVCache

ROWS, LENGTH, LAYERS, GROUPS, TIMES, SIZE = 4, 24, 2, 2, 3, 5
CPU, DOUBLE = torch.device("cpu"), torch.float64
LIKE = [(torch.zeros(1, GROUPS, 1, SIZE, dtype=DOUBLE),) * 2] * LAYERS


class Rows:
    """All queries, keys and values that the rows will ever have, and what plain attention makes of them."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)

        def numbers(heads: int) -> torch.Tensor:
            return torch.randn(LAYERS, ROWS, heads, LENGTH, SIZE, generator=draw, dtype=DOUBLE)

        self.queries, self.keys, self.values = numbers(GROUPS * TIMES), numbers(GROUPS), numbers(GROUPS)

    def packed(self, layer: int, pieces: list[Chunk], size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``size`` tokens: what is left after the pieces' own is no number."""
        query, key, value = (
            torch.cat([of[layer, one.row, :, one.start : one.end] for one in pieces], dim=1)
            for of in (self.queries, self.keys, self.values)
        )
        left = size - query.shape[1]
        query, key, value = (
            torch.nn.functional.pad(one, (0, 0, 0, left), value=torch.nan) for one in (query, key, value)
        )
        return query, key, value

    def expected(
        self, layer: int, piece: Chunk, window: int | None, softcap: float | None, scale: float | None
    ) -> torch.Tensor:
        """[tokens, heads, head size], one token and one head after the other."""
        answer = torch.empty(len(piece.ids), GROUPS * TIMES, SIZE, dtype=DOUBLE)
        for at in range(piece.start, piece.end):
            first = 0 if window is None else max(0, at + 1 - window)
            for head in range(GROUPS * TIMES):
                keys = self.keys[layer, piece.row, head // TIMES, first : at + 1]
                values = self.values[layer, piece.row, head // TIMES, first : at + 1]
                scores = keys @ self.queries[layer, piece.row, head, at] * (SIZE**-0.5 if scale is None else scale)
                if softcap is not None:
                    scores = (scores / softcap).tanh() * softcap
                answer[at - piece.start, head] = scores.softmax(0) @ values
        return answer


EVERYTHING = Rows()


def pieces_of(lengths: dict[int, int], reads: dict[int, int]) -> list[Chunk]:
    """Pieces in the order that a step wants them."""
    pieces = [Chunk(row, lengths[row], [1] * count) for row, count in sorted(reads.items())]
    return sorted(pieces, key=lambda piece: len(piece.ids) > 1)


reads = st.dictionaries(st.integers(0, ROWS - 1), st.integers(1, 5), min_size=1)


@settings(max_examples=40, deadline=None)
@given(
    schedule=st.lists(reads, min_size=1, max_size=8),
    window=st.sampled_from([None, 1, 3, LENGTH]),
    softcap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([None, 0.3]),
    call_cost=st.sampled_from([0, 256]),  # each row in a call of its own, or all in one
    few_scores=st.sampled_from([0, 40, 10_000]),  # matrix products, either, or torch's own attention
    tile=st.sampled_from([2, 3, 64]),
)
@example([{0: 5, 3: 5}, {3: 1}, {0: 1, 3: 1}, {1: 1, 3: 1}], None, None, None, 256, 0, 64)
@example([{0: 5, 3: 1}, {3: 1}, {0: 1, 3: 1}, {1: 1, 3: 1}], 2, 2.0, None, 0, 0, 2)
@example([dict.fromkeys(range(ROWS), 5), dict.fromkeys(range(ROWS), 1)], 3, None, None, 256, 40, 3)
@example([dict.fromkeys(range(ROWS), 5), {1: 1, 3: 1}], 1, 2.0, None, 256, 10_000, 64)
def test_each_row_attends_to_its_own_tokens_and_no_others(
    schedule: list[dict[int, int]],
    window: int | None,
    softcap: float | None,
    scale: float | None,
    call_cost: int,
    few_scores: int,
    tile: int,
) -> None:
    cache = KVCache(LIKE, ROWS, LENGTH)
    for layer in cache.layers:
        for one in layer:
            one.fill_(1e3)  # what an earlier request left
    lengths = dict.fromkeys(range(ROWS), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "CALL_COST", call_cost)
        patch.setattr(attention, "FEW_SCORES", few_scores)
        patch.setattr(attention, "TILE", tile)
        patch.setattr(attention, "ROUND_TOKENS", 4)
        patch.setattr(attention, "ROUND_SEEN", 4)
        for wanted in schedule:
            pieces = pieces_of(lengths, {row: min(n, LENGTH - lengths[row]) for row, n in wanted.items()})
            pieces = [piece for piece in pieces if piece.ids]
            if not pieces:
                continue
            step = PackedStep(cache, pieces, CPU, DOUBLE)
            for layer in range(LAYERS):
                found = step.attend(
                    layer,
                    *EVERYTHING.packed(layer, pieces, step.ids.shape[1]),
                    scale=scale,
                    window=window,
                    softcap=softcap,
                )[: sum(len(piece.ids) for piece in pieces)]
                expected = [EVERYTHING.expected(layer, piece, window, softcap, scale) for piece in pieces]
                assert torch.allclose(found, torch.cat(expected), atol=1e-5 if softcap else 1e-9)
            for piece in pieces:
                lengths[piece.row] = piece.end


def test_a_step_tells_the_model_ids_places_and_where_each_piece_ends() -> None:
    cache = KVCache(LIKE, ROWS, LENGTH)
    step = PackedStep(cache, [Chunk(1, 7, [40]), Chunk(3, 0, [41]), Chunk(0, 4, [42, 43, 44])], CPU, DOUBLE)
    assert step.ids.tolist() == [[40, 41, 42, 43, 44]]
    assert step.positions.tolist() == [[7, 0, 4, 5, 6]]
    assert step.output_positions.tolist() == [0, 1, 4]


def test_scores_that_float16_cannot_hold_before_they_are_scaled_are_right() -> None:
    size, length = 256, 128
    cache = KVCache([(torch.zeros(1, 1, 1, size, dtype=torch.float16),) * 2], 1, length)
    draw = torch.Generator().manual_seed(0)
    direction = torch.randn(size, generator=draw)
    query, key = (
        (direction * 20 + torch.randn(1, length, size, generator=draw)).half() for _ in range(2)
    )  # products of 100,000
    value = torch.randn(1, length, size, generator=draw).half()
    step = PackedStep(cache, [Chunk(0, 0, [1] * length)], CPU, torch.float16)
    found = step.attend(0, query, key, value, scale=None, window=None, softcap=None)[:, 0]
    assert found.isfinite().all()
    assert (query[0].float() @ key[0].float().T).max() > torch.finfo(torch.float16).max


def test_a_step_of_many_tokens_is_filled_up_to_a_usual_size() -> None:
    step = PackedStep(KVCache(LIKE, ROWS, LENGTH), [Chunk(0, 0, [7] * 17)], CPU, DOUBLE)
    assert step.ids.tolist() == [[7] * 17 + [0] * 15]
    assert step.positions.tolist() == [[*range(17)] + [0] * 15]
    assert step.output_positions.tolist() == [16]


def test_the_cache_is_taken_once_and_written_in_place() -> None:
    cache = KVCache(LIKE, ROWS, LENGTH)
    places = [one.data_ptr() for layer in cache.layers for one in layer]
    assert cache.size == ROWS * LENGTH * cache.token_bytes == LAYERS * 2 * ROWS * GROUPS * LENGTH * SIZE * 8
    pieces = [Chunk(2, LENGTH - 1, [1]), Chunk(0, 0, [1] * LENGTH)]
    step = PackedStep(cache, pieces, CPU, DOUBLE)
    step.attend(1, *EVERYTHING.packed(1, pieces, step.ids.shape[1]), scale=None, window=None, softcap=None)
    assert [one.data_ptr() for layer in cache.layers for one in layer] == places
    keys, values = cache.layers[1]
    assert torch.equal(keys[0], EVERYTHING.keys[1, 0])
    assert torch.equal(values[2, :, -1], EVERYTHING.values[1, 2, :, -1])
    assert not keys[1].any()
    assert not keys[2, :, :-1].any()
    assert not cache.layers[0][0].any()
