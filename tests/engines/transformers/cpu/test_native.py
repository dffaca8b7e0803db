"""Tests of the compiled attention of decoding rows, compared with plain attention."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.kv_cache import KVCache, supports
from aiochatstream.engines.transformers.packed_step import PackedStep

pytestmark = pytest.mark.slow

if shutil.which("g++") is None:
    pytest.skip("a C++ compiler is missing: apt-get install g++", allow_module_level=True)

ROWS, LENGTH, KV_HEADS, SHARING, SIZE = 4, 40, 2, 3, 16
CPU = torch.device("cpu")


def cache_of(dtype: torch.dtype) -> KVCache:
    like = [(torch.zeros(1, KV_HEADS, 1, SIZE, dtype=dtype),) * 2]
    assert supports("native", like)
    cache = KVCache(like, rows=ROWS, length=LENGTH, kernel="native")
    blocks = cache.blocks_for(LENGTH)
    for row in range(ROWS):  # no neighbours
        cache.assign(row, [*range(row, ROWS * blocks, ROWS)][::-1])
    keys, values = cache.layers[0]
    generator = torch.Generator().manual_seed(1)
    keys.copy_(torch.randn(keys.shape, generator=generator))
    values.copy_(torch.randn(values.shape, generator=generator))
    return cache


def rows_of(cache: KVCache, part: torch.Tensor) -> torch.Tensor:
    """Return keys or values of all positions, [rows, heads, length, head size]. A copy."""
    return torch.stack([part[:, torch.from_numpy(cache.places(row, 0, LENGTH))] for row in range(ROWS)])


def new_tokens(count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return query, key and value in the layout of a model: the heads of a token are adjacent."""
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(count, heads, SIZE, generator=generator).to(dtype).transpose(0, 1)
        for heads in (KV_HEADS * SHARING, KV_HEADS, KV_HEADS)
    ]


def expected(
    cache: KVCache,
    query: torch.Tensor,
    row: int,
    at: int,
    window: int | None,
    softcap: float | None,
    scale: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Return the result [heads, head size] of one token, computed in double precision from the cache."""
    first = 0 if window is None else max(0, at + 1 - window)
    keys, values = (
        rows_of(cache, tensor)[row, :, first : at + 1].double().repeat_interleave(SHARING, 0)
        for tensor in cache.layers[0]
    )
    scores = torch.einsum("hd,hsd->hs", query.double(), keys) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if sinks is not None:
        scores = torch.cat((scores, sinks.double()[:, None]), 1)
    return torch.einsum("hs,hsd->hd", scores.softmax(-1)[:, : values.shape[1]], values)


@settings(max_examples=40, deadline=None)
@given(
    positions=st.dictionaries(st.integers(0, ROWS - 2), st.integers(0, LENGTH - 1), min_size=1),
    prompt_tokens=st.integers(0, 20),
    window=st.sampled_from([None, 1, 7, LENGTH]),
    softcap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([None, 0.9]),
    sinks=st.sampled_from([None, torch.linspace(-3, 3, KV_HEADS * SHARING)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@example({0: 0}, 0, None, None, None, None, torch.bfloat16)
@example({0: 5, 2: LENGTH - 1}, 20, 7, 2.0, 0.9, torch.linspace(-3, 3, KV_HEADS * SHARING), torch.float32)
def test_decoding_rows_attend_as_plain_attention(
    positions: dict[int, int],
    prompt_tokens: int,
    window: int | None,
    softcap: float | None,
    scale: float | None,
    sinks: torch.Tensor | None,
    dtype: torch.dtype,
) -> None:
    cache = cache_of(dtype)
    before = [rows_of(cache, tensor) for tensor in cache.layers[0]]
    chunks = [Chunk(row, at, [1]) for row, at in sorted(positions.items())]
    if prompt_tokens > 1:
        chunks.append(Chunk(ROWS - 1, 3, [1] * prompt_tokens))
    step = PackedStep(cache, chunks, CPU, dtype)
    query, key, value = new_tokens(step.ids.shape[1], dtype)
    actual = step.attend(0, query, key, value, scale=scale, window=window, softcap=softcap, sinks=sinks)
    assert actual.is_contiguous()
    assert actual.shape == (step.ids.shape[1], KV_HEADS * SHARING, SIZE)
    start = 0
    for chunk in chunks:
        for expected_cache, cached, new in zip(before, cache.layers[0], (key, value), strict=True):
            expected_cache[chunk.row, :, chunk.start : chunk.end] = new[:, start : start + len(chunk.ids)]
            assert torch.equal(rows_of(cache, cached)[chunk.row], expected_cache[chunk.row])
        for at in range(chunk.start, chunk.end):
            index = start + at - chunk.start
            result = expected(cache, query[:, index], chunk.row, at, window, softcap, scale or SIZE**-0.5, sinks)
            assert torch.allclose(actual[index].double(), result, atol=1e-5 if dtype == torch.float32 else 0.05)
        start += len(chunk.ids)
    for expected_cache, cached in zip(before, cache.layers[0], strict=True):
        assert torch.equal(rows_of(cache, cached), expected_cache), "other tokens were overwritten"


def test_scores_of_very_different_sizes_are_correct() -> None:
    cache = cache_of(torch.float32)
    keys, values = cache.layers[0]
    place = int(cache.places(0, 3, 4)[0])
    keys[:, place] = 1000.0
    step = PackedStep(cache, [Chunk(0, 20, [1])], CPU, torch.float32)
    _, key, value = new_tokens(1, torch.float32)
    actual = step.attend(0, torch.ones(KV_HEADS * SHARING, 1, SIZE), key, value, scale=None, window=None, softcap=None)
    assert torch.equal(actual[0], values[:, place].repeat_interleave(SHARING, 0))


def test_nan_in_one_row_does_not_spread_to_others() -> None:
    cache = cache_of(torch.bfloat16)
    cache.layers[0][0][:, int(cache.places(1, 2, 3)[0])] = math.nan
    step = PackedStep(cache, [Chunk(row, 9, [1]) for row in range(3)], CPU, torch.bfloat16)
    actual = step.attend(0, *new_tokens(3, torch.bfloat16), scale=None, window=None, softcap=2.0)
    assert actual[1].isnan().all()
    assert actual[[0, 2]].isfinite().all()


def test_strided_heads_are_read_correctly_and_other_dtypes_are_an_error() -> None:
    new = new_tokens(2, torch.float32)
    results = []
    for tokens in (new, [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in new]):
        step = PackedStep(cache_of(torch.float32), [Chunk(row, 9, [1]) for row in range(2)], CPU, torch.float32)
        results.append(step.attend(0, *tokens, scale=None, window=None, softcap=None))
    assert torch.equal(*results)
    with pytest.raises(TypeError, match=r"query torch\.float64, key torch\.float32"):
        step.attend(0, new[0].double(), *new[1:], scale=None, window=None, softcap=None)
