"""The compiled attention of rows that decode: what plain attention computes, also beside prompts that are read."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers.packed_step import Chunk, PackedStep
from aiochatstream.engines.transformers.kv_cache import KVCache

if shutil.which("g++") is None:
    pytest.skip("a C++ compiler is missing: apt-get install g++", allow_module_level=True)

ROWS, LENGTH, GROUPS, TIMES, SIZE = 4, 40, 2, 3, 16
CPU = torch.device("cpu")


def cache_of(dtype: torch.dtype) -> KVCache:
    cache = KVCache([(torch.zeros(1, GROUPS, 1, SIZE, dtype=dtype),) * 2], ROWS, LENGTH, native=True)
    assert cache.native
    keys, values = cache.layers[0]
    draw = torch.Generator().manual_seed(1)
    keys.copy_(torch.randn(keys.shape, generator=draw))
    values.copy_(torch.randn(values.shape, generator=draw))
    return cache


def new_tokens(count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key and value of each, in the layout that a model gives them: heads of a token side by side."""
    draw = torch.Generator().manual_seed(2)
    return [
        torch.randn(count, heads, SIZE, generator=draw).to(dtype).transpose(0, 1)
        for heads in (GROUPS * TIMES, GROUPS, GROUPS)
    ]


def expected(
    cache: KVCache, query: torch.Tensor, row: int, at: int, window: int | None, softcap: float | None, scale: float
) -> torch.Tensor:
    """Of one token: [heads, head size], computed in double precision from what is in the cache now."""
    first = 0 if window is None else max(0, at + 1 - window)
    keys, values = (one[row, :, first : at + 1].double().repeat_interleave(TIMES, 0) for one in cache.layers[0])
    scores = torch.einsum("hd,hsd->hs", query.double(), keys) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    return torch.einsum("hs,hsd->hd", scores.softmax(-1), values)


@settings(max_examples=40, deadline=None)
@given(
    places=st.dictionaries(st.integers(0, ROWS - 2), st.integers(0, LENGTH - 1), min_size=1),
    read=st.integers(0, 20),
    window=st.sampled_from([None, 1, 7, LENGTH]),
    softcap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([None, 0.9]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@example({0: 0}, 0, None, None, None, torch.bfloat16)
@example({0: 5, 2: LENGTH - 1}, 20, 7, 2.0, 0.9, torch.float32)
def test_rows_that_decode_attend_as_plain_attention_does(
    places: dict[int, int],
    read: int,
    window: int | None,
    softcap: float | None,
    scale: float | None,
    dtype: torch.dtype,
) -> None:
    cache = cache_of(dtype)
    before = [one.clone() for one in cache.layers[0]]
    pieces = [Chunk(row, at, [1]) for row, at in sorted(places.items())]
    if read > 1:
        pieces.append(Chunk(ROWS - 1, 3, [1] * read))
    step = PackedStep(cache, pieces, CPU, dtype)
    query, key, value = new_tokens(step.ids.shape[1], dtype)
    found = step.attend(0, query, key, value, scale=scale, window=window, softcap=softcap)
    assert found.is_contiguous()
    assert found.shape == (step.ids.shape[1], GROUPS * TIMES, SIZE)
    begin = 0
    for piece in pieces:
        for was, now, new in zip(before, cache.layers[0], (key, value), strict=True):
            was[piece.row, :, piece.start : piece.end] = new[:, begin : begin + len(piece.ids)]
            assert torch.equal(now[piece.row], was[piece.row])
        for at in range(piece.start, piece.end):
            place = begin + at - piece.start
            wanted = expected(cache, query[:, place], piece.row, at, window, softcap, scale or SIZE**-0.5)
            assert torch.allclose(found[place].double(), wanted, atol=1e-5 if dtype == torch.float32 else 0.05)
        begin += len(piece.ids)
    for was, now in zip(before, cache.layers[0], strict=True):
        assert torch.equal(now, was), "more was written than the new tokens"


def test_scores_far_apart_are_no_trouble() -> None:
    cache = cache_of(torch.float32)
    keys, values = cache.layers[0]
    keys[0, :, 3] = 1000.0
    step = PackedStep(cache, [Chunk(0, 20, [1])], CPU, torch.float32)
    _, key, value = new_tokens(1, torch.float32)
    found = step.attend(0, torch.ones(GROUPS * TIMES, 1, SIZE), key, value, scale=None, window=None, softcap=None)
    assert torch.equal(found[0], values[0, :, 3].repeat_interleave(TIMES, 0))


def test_what_is_no_number_in_one_row_stays_there_and_is_told() -> None:
    cache = cache_of(torch.bfloat16)
    cache.layers[0][0][1, :, 2] = math.nan
    step = PackedStep(cache, [Chunk(row, 9, [1]) for row in range(3)], CPU, torch.bfloat16)
    found = step.attend(0, *new_tokens(3, torch.bfloat16), scale=None, window=None, softcap=2.0)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


def test_heads_whose_numbers_are_not_neighbours_are_read_right_and_other_numbers_not_at_all() -> None:
    new = new_tokens(2, torch.float32)
    found = []
    for tokens in (new, [one.transpose(1, 2).contiguous().transpose(1, 2) for one in new]):
        step = PackedStep(cache_of(torch.float32), [Chunk(row, 9, [1]) for row in range(2)], CPU, torch.float32)
        found.append(step.attend(0, *tokens, scale=None, window=None, softcap=None))
    assert torch.equal(*found)
    with pytest.raises(TypeError, match=r"float64 .*float32"):
        step.attend(0, new[0].double(), *new[1:], scale=None, window=None, softcap=None)


def test_where_it_cannot_compute_what_is_cached_torch_does() -> None:
    for keys, values in (
        (torch.zeros(1, 1, 1, 8, dtype=torch.float16), torch.zeros(1, 1, 1, 8, dtype=torch.float16)),
        (torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1, 4)),
    ):
        cache = KVCache([(keys, values)], 2, 8, native=True)
        assert not cache.native
        step = PackedStep(cache, [Chunk(0, 0, [1])], CPU, keys.dtype)
        new = torch.ones(1, 1, values.shape[-1], dtype=keys.dtype)
        found = step.attend(0, keys[0], keys[0], new, scale=None, window=None, softcap=None)
        assert torch.equal(found, new)
