"""Tests of the KV cache."""

from __future__ import annotations

import psutil
import pytest
import torch

from aiochatstream.engines.transformers.cpu.native import BLOCK_SIZE
from aiochatstream.engines.transformers.kv_cache import KVCache, supports

LAYERS, ROWS, HEADS, LENGTH, SIZE = 2, 3, 2, 40, 4


def random_cache(tokens: int | None = None) -> KVCache:
    cache = KVCache([(torch.zeros(1, HEADS, 1, SIZE),) * 2] * LAYERS, rows=ROWS, length=LENGTH, tokens=tokens)
    for layer in cache.layers:
        for tensor in layer:
            tensor.normal_(generator=torch.Generator().manual_seed(0))
    return cache


@pytest.mark.parametrize(("tokens", "blocks"), [(None, ROWS * 3), (1, 1), (48, 3), (49, 4)])
def test_the_size_includes_all_keys_and_values_in_whole_blocks(tokens: int | None, blocks: int) -> None:
    cache = random_cache(tokens)
    assert cache.blocks == blocks
    assert cache.size == LAYERS * 2 * HEADS * blocks * BLOCK_SIZE * SIZE * 4


def test_positions_are_in_the_blocks_of_their_row() -> None:
    cache = random_cache()
    cache.assign(1, [7, 2])
    assert cache.places(1, 14, 20).tolist() == [7 * 16 + 14, 7 * 16 + 15, *range(2 * 16, 2 * 16 + 4)]
    assert cache.places(1, 16, 17).tolist() == [2 * 16]
    assert cache.row_length(1) == 32
    assert cache.places(1, 32, 40).tolist() == [*range(2 * 16, 2 * 16 + 8)], "positions after the last block"
    assert cache.places(2, 0, 3).tolist() == [6 * 16, 6 * 16 + 1, 6 * 16 + 2]


def test_copying_a_block_copies_only_its_first_tokens() -> None:
    cache = random_cache()
    before = [tensor.clone() for layer in cache.layers for tensor in layer]
    cache.copy_block(5, 1, 3)
    for tensor, old in zip((tensor for layer in cache.layers for tensor in layer), before, strict=True):
        old[:, 16:19] = old[:, 80:83]
        assert torch.equal(tensor, old)


def test_clearing_blocks_leaves_the_others() -> None:
    cache = random_cache()
    before = [tensor.clone() for layer in cache.layers for tensor in layer]
    cache.clear([2, 4])
    for tensor, old in zip((tensor for layer in cache.layers for tensor in layer), before, strict=True):
        for block in (2, 4):
            old[:, block * 16 : block * 16 + 16] = 0
        assert torch.equal(tensor, old)


def test_a_new_cache_is_zero_in_each_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer = torch.zeros(1, HEADS, 1, SIZE, dtype=dtype), torch.zeros(1, 1, 1, 2 * SIZE, dtype=dtype)
        (keys, values), *_ = KVCache([layer], rows=ROWS, length=LENGTH).layers
        assert (keys.shape, values.shape) == ((HEADS, ROWS * 48, SIZE), (1, ROWS * 48, 2 * SIZE))
        assert keys.dtype == values.dtype == dtype
        assert not keys.any()
        assert not values.any()


def test_unused_memory_of_a_cache_on_a_cpu_is_only_reserved() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    cache = KVCache([(torch.zeros(1, 8, 1, 64),) * 2], rows=4, length=1 << 16)
    cache.clear([3, 10])
    assert cache.size == 1 << 30
    assert process.memory_info().rss - before < cache.size / 4


def test_the_workspace_is_reused() -> None:
    cache, like = random_cache(), torch.zeros(1)
    large = cache.workspace("keys", like, 4, 6)
    assert cache.workspace("keys", like, 3, 2).data_ptr() == large.data_ptr()
    assert cache.workspace("keys", like, 2, 3, 4).shape == (2, 3, 4)
    assert cache.workspace("values", like, 3, 2).data_ptr() != large.data_ptr()
    assert cache.workspace("keys", like.double(), 3, 2).dtype == torch.float64


def test_kernels_support_dtypes_and_shapes() -> None:
    def layer(dtype: torch.dtype, value_size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, HEADS, 1, SIZE, dtype=dtype), torch.zeros(1, HEADS, 1, value_size, dtype=dtype)

    assert supports("native", [layer(torch.float32), layer(torch.float32)])
    assert supports("native", [layer(torch.bfloat16)])
    assert not supports("native", [layer(torch.float16)])
    assert not supports("native", [layer(torch.float32), layer(torch.float32, 2 * SIZE)])
    assert not supports("native", [])
    assert not supports("varlen", [layer(torch.bfloat16)]), "it requires CUDA"
