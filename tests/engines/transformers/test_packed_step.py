"""Tests of packed steps: their attention compared with plain attention in each row, and writes to the KV cache."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers import chunk as chunk_module
from aiochatstream.engines.transformers import grouped_attention, kv_cache
from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.kv_cache import Kernel, KVCache
from aiochatstream.engines.transformers.packed_step import PackedStep

ROWS, LENGTH, LAYERS, KV_HEADS, SHARING, SIZE = 4, 24, 2, 2, 3, 5
CPU, DOUBLE = torch.device("cpu"), torch.float64
LIKE = [(torch.zeros(1, KV_HEADS, 1, SIZE, dtype=DOUBLE),) * 2] * LAYERS


class Rows:
    """Queries, keys and values of all rows, and plain attention."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def numbers(heads: int) -> torch.Tensor:
            return torch.randn(LAYERS, ROWS, heads, LENGTH, SIZE, generator=generator, dtype=DOUBLE)

        self.queries, self.keys, self.values = numbers(KV_HEADS * SHARING), numbers(KV_HEADS), numbers(KV_HEADS)

    def packed(self, layer: int, chunks: list[Chunk], size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value of a step of ``size`` tokens; the padding is NaN."""
        query, key, value = (
            torch.cat([tensor[layer, chunk.row, :, chunk.start : chunk.end] for chunk in chunks], dim=1)
            for tensor in (self.queries, self.keys, self.values)
        )
        padding = size - query.shape[1]
        query, key, value = (
            torch.nn.functional.pad(tensor, (0, 0, 0, padding), value=torch.nan) for tensor in (query, key, value)
        )
        return query, key, value

    def expected(
        self,
        layer: int,
        chunk: Chunk,
        window: int | None,
        softcap: float | None,
        scale: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the results [tokens, heads, head size] of a chunk."""
        result = torch.empty(len(chunk.ids), KV_HEADS * SHARING, SIZE, dtype=DOUBLE)
        for at in range(chunk.start, chunk.end):
            first = 0 if window is None else max(0, at + 1 - window)
            for head in range(KV_HEADS * SHARING):
                keys = self.keys[layer, chunk.row, head // SHARING, first : at + 1]
                values = self.values[layer, chunk.row, head // SHARING, first : at + 1]
                scores = keys @ self.queries[layer, chunk.row, head, at] * (SIZE**-0.5 if scale is None else scale)
                if softcap is not None:
                    scores = (scores / softcap).tanh() * softcap
                if sinks is not None:
                    scores = torch.cat((scores, sinks[head, None]))
                    values = torch.cat((values, torch.zeros(1, SIZE, dtype=DOUBLE)))
                result[at - chunk.start, head] = scores.softmax(0) @ values
        return result


ALL_ROWS = Rows()
SINKS = torch.linspace(-2, 2, KV_HEADS * SHARING, dtype=DOUBLE)


def cache_of(block_size: int = 4, order: int | None = None, kernel: Kernel | None = None) -> KVCache:
    """Return a cache with tokens of earlier requests.

    :param order: seed of a random order of all blocks; None for neighbours.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("BLOCK_SIZE", "VARLEN_BLOCK_SIZE"):
            patch.setattr(kv_cache, name, block_size)
        cache = KVCache(LIKE, rows=ROWS, length=LENGTH, kernel=kernel)
    for layer in cache.layers:
        for part in layer:
            part.fill_(1e3)
    blocks = [*range(cache.blocks)]
    if order is not None:
        random.Random(order).shuffle(blocks)  # noqa: S311
    count = len(blocks) // ROWS
    for row in range(ROWS):
        cache.assign(row, blocks[row * count : (row + 1) * count])
    return cache


def row_of(cache: KVCache, part: torch.Tensor, row: int) -> torch.Tensor:
    """Return keys or values of all positions of a row."""
    return part[:, torch.from_numpy(cache.places(row, 0, LENGTH))]


def chunks_of(lengths: dict[int, int], counts: dict[int, int]) -> list[Chunk]:
    """Return chunks in the order that a step requires."""
    chunks = [Chunk(row, lengths[row], [1] * count) for row, count in sorted(counts.items())]
    return sorted(chunks, key=lambda chunk: len(chunk.ids) > 1)


token_counts = st.dictionaries(st.integers(0, ROWS - 1), st.integers(1, 5), min_size=1)


@settings(max_examples=40, deadline=None)
@given(
    schedule=st.lists(token_counts, min_size=1, max_size=8),
    window=st.sampled_from([None, 1, 3, LENGTH]),
    softcap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([None, 0.3]),
    sinks=st.sampled_from([None, SINKS]),
    order=st.none() | st.integers(0, 9),
    call_cost=st.sampled_from([0, 256]),  # a call for each row, or one for all
    few_scores=st.sampled_from([0, 40, 10_000]),  # matrix products, both, or torch's attention
    tile=st.sampled_from([2, 3, 64]),
)
@example([{0: 5, 3: 5}, {3: 1}, {0: 1, 3: 1}, {1: 1, 3: 1}], None, None, None, None, 1, 256, 0, 64)
@example([{0: 5, 3: 1}, {3: 1}, {0: 1, 3: 1}, {1: 1, 3: 1}], 2, 2.0, None, None, 1, 0, 0, 2)
@example([dict.fromkeys(range(ROWS), 5), dict.fromkeys(range(ROWS), 1)], 3, None, None, None, 1, 256, 40, 3)
@example([dict.fromkeys(range(ROWS), 5), {1: 1, 3: 1}], 1, 2.0, None, None, 1, 256, 10_000, 64)
def test_each_row_attends_only_to_its_own_tokens(
    schedule: list[dict[int, int]],
    window: int | None,
    softcap: float | None,
    scale: float | None,
    sinks: torch.Tensor | None,
    order: int | None,
    call_cost: int,
    few_scores: int,
    tile: int,
) -> None:
    cache = cache_of(order=order)
    lengths = dict.fromkeys(range(ROWS), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped_attention, "CALL_COST", call_cost)
        patch.setattr(grouped_attention, "FEW_SCORES", few_scores)
        patch.setattr(grouped_attention, "CPU_TILE", tile)
        patch.setattr(grouped_attention, "TOKEN_MULTIPLE", 4)
        patch.setattr(chunk_module, "TOKEN_MULTIPLE", 4)
        patch.setattr(grouped_attention, "SEEN_MULTIPLE", 4)
        for counts in schedule:
            chunks = chunks_of(lengths, {row: min(n, LENGTH - lengths[row]) for row, n in counts.items()})
            chunks = [chunk for chunk in chunks if chunk.ids]
            if not chunks:
                continue
            step = PackedStep(cache, chunks, CPU, DOUBLE)
            for layer in range(LAYERS):
                actual = step.attend(
                    layer,
                    *ALL_ROWS.packed(layer, chunks, step.ids.shape[1]),
                    scale=scale,
                    window=window,
                    softcap=softcap,
                    sinks=sinks,
                )[: sum(len(chunk.ids) for chunk in chunks)]
                expected = [ALL_ROWS.expected(layer, chunk, window, softcap, scale, sinks) for chunk in chunks]
                assert torch.allclose(actual, torch.cat(expected), atol=1e-5 if softcap else 1e-9)
            for chunk in chunks:
                lengths[chunk.row] = chunk.end


def test_a_step_has_ids_positions_and_the_end_of_each_chunk() -> None:
    cache = KVCache(LIKE, rows=ROWS, length=LENGTH)
    step = PackedStep(cache, [Chunk(1, 7, [40]), Chunk(3, 0, [41]), Chunk(0, 4, [42, 43, 44])], CPU, DOUBLE)
    assert step.ids.tolist() == [[40, 41, 42, 43, 44]]
    assert step.positions.tolist() == [[7, 0, 4, 5, 6]]
    assert step.output_positions.tolist() == [0, 1, 4]


def test_scores_that_overflow_float16_before_scaling_are_correct() -> None:
    size, length = 256, 128
    cache = KVCache([(torch.zeros(1, 1, 1, size, dtype=torch.float16),) * 2], rows=1, length=length)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(size, generator=generator)
    query, key = ((direction * 20 + torch.randn(1, length, size, generator=generator)).half() for _ in range(2))
    value = torch.randn(1, length, size, generator=generator).half()
    step = PackedStep(cache, [Chunk(0, 0, [1] * length)], CPU, torch.float16)
    actual = step.attend(0, query, key, value, scale=None, window=None, softcap=None)[:, 0]
    assert actual.isfinite().all()
    assert (query[0].float() @ key[0].float().T).max() > torch.finfo(torch.float16).max


def test_the_size_of_a_step_of_many_tokens_is_rounded_up() -> None:
    step = PackedStep(KVCache(LIKE, rows=ROWS, length=LENGTH), [Chunk(0, 0, [7] * 17)], CPU, DOUBLE)
    assert step.ids.tolist() == [[7] * 17 + [0] * 15]
    assert step.positions.tolist() == [[*range(17)] + [0] * 15]
    assert step.output_positions.tolist() == [16]


def test_new_keys_and_values_are_written_in_place() -> None:
    cache = cache_of(order=3)
    addresses = [tensor.data_ptr() for layer in cache.layers for tensor in layer]
    chunks = [Chunk(2, LENGTH - 1, [1]), Chunk(0, 0, [1] * LENGTH)]
    step = PackedStep(cache, chunks, CPU, DOUBLE)
    step.attend(1, *ALL_ROWS.packed(1, chunks, step.ids.shape[1]), scale=None, window=None, softcap=None)
    assert [tensor.data_ptr() for layer in cache.layers for tensor in layer] == addresses
    keys, values = cache.layers[1]
    assert torch.equal(row_of(cache, keys, 0), ALL_ROWS.keys[1, 0])
    assert torch.equal(row_of(cache, values, 2)[:, -1], ALL_ROWS.values[1, 2, :, -1])
    assert bool((row_of(cache, keys, 1) == 1e3).all())
    assert bool((row_of(cache, keys, 2)[:, :-1] == 1e3).all())
    assert bool((cache.layers[0][0] == 1e3).all())


def test_rows_read_shared_blocks_and_nothing_after_their_own() -> None:
    cache = cache_of()
    chunks = [Chunk(row, 4, [1]) for row in (0, 1)]
    blocks = cache.tables[0].tolist()
    cache.assign(1, [blocks[0], blocks[-1]])
    step = PackedStep(cache, [Chunk(0, 0, [1] * 4)], CPU, DOUBLE)
    step.attend(0, *ALL_ROWS.packed(0, [Chunk(0, 0, [1] * 4)], 4), scale=None, window=None, softcap=None)
    for part in cache.layers[0]:
        for block in {*range(cache.blocks)} - {blocks[0], blocks[1], blocks[-1]}:
            part[:, block * 4 : block * 4 + 4] = torch.nan
    step = PackedStep(cache, chunks, CPU, DOUBLE)
    query, key, value = ALL_ROWS.packed(0, [chunks[0]] * 2, 2)
    first, second = step.attend(0, query, key, value, scale=None, window=None, softcap=None)
    assert torch.allclose(first, second)
    assert torch.allclose(first, ALL_ROWS.expected(0, chunks[0], None, None, None, None)[0])


def test_neighbouring_blocks_are_read_without_a_copy() -> None:
    cache = cache_of()
    keys, _ = cache.layers[0]
    assert cache.read(keys, slice(4, 20), "keys").data_ptr() == keys[:, 4:].data_ptr()
    copies: list[str] = []
    workspace = cache.workspace
    chunk = Chunk(1, 0, [1] * 20)

    def record(name: str, *args: Any) -> torch.Tensor:
        copies.append(name)
        return workspace(name, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "workspace", record)
        for row_blocks in (None, [5, 4, 3, 2, 1]):
            if row_blocks is not None:
                cache.assign(1, row_blocks)
            step = PackedStep(cache, [chunk], CPU, DOUBLE)
            step.attend(0, *ALL_ROWS.packed(0, [chunk], step.ids.shape[1]), scale=None, window=None, softcap=None)
            assert {"keys", "values"} & {*copies} == (set() if row_blocks is None else {"keys", "values"})
