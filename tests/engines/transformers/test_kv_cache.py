"""Tests of the KV cache."""

from __future__ import annotations

import psutil
import torch

from aiochatstream.engines.transformers.kv_cache import KVCache

LAYERS, ROWS, HEADS, LENGTH, SIZE = 2, 3, 2, 5, 4


def random_cache() -> KVCache:
    cache = KVCache([(torch.zeros(1, HEADS, 1, SIZE),) * 2] * LAYERS, ROWS, LENGTH)
    for layer in cache.layers:
        for tensor in layer:
            tensor.normal_(generator=torch.Generator().manual_seed(0))
    return cache


def test_the_size_includes_all_keys_and_values() -> None:
    assert random_cache().size == LAYERS * 2 * ROWS * HEADS * LENGTH * SIZE * 4


def test_copying_a_row_copies_only_its_first_tokens() -> None:
    cache = random_cache()
    before = [tensor.clone() for tensor in cache.row(2)]
    cache.copy_row(0, 2, 3)
    for source, target, old in zip(cache.row(0), cache.row(2), before, strict=True):
        assert torch.equal(target[:, :3], source[:, :3])
        assert torch.equal(target[:, 3:], old[:, 3:])


def test_a_new_cache_is_zero_in_each_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer = torch.zeros(1, HEADS, 1, SIZE, dtype=dtype), torch.zeros(1, 1, 1, 2 * SIZE, dtype=dtype)
        (keys, values), *_ = KVCache([layer], ROWS, LENGTH).layers
        assert (keys.shape, values.shape) == ((ROWS, HEADS, LENGTH, SIZE), (ROWS, 1, LENGTH, 2 * SIZE))
        assert keys.dtype == values.dtype == dtype
        assert not keys.any()
        assert not values.any()


def test_unused_memory_of_a_cache_on_a_cpu_is_only_reserved() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    cache = KVCache([(torch.zeros(1, 8, 1, 64),) * 2], rows=4, length=1 << 16)
    cache.clear(3, 10)
    assert cache.size == 1 << 30
    assert process.memory_info().rss - before < cache.size / 4


def test_clearing_a_row_leaves_the_others_and_its_later_tokens() -> None:
    cache = random_cache()
    cache.clear(1, 3)
    assert not any(tensor[:, :3].any() for tensor in cache.row(1))
    assert all(tensor[:, 3:].all() for tensor in cache.row(1))
    assert all(tensor.all() for row in (0, 2) for tensor in cache.row(row))


def test_the_workspace_is_reused() -> None:
    cache = random_cache()
    large = cache.workspace(4, 6)
    assert cache.workspace(3, 2).data_ptr() == large.data_ptr()
    assert cache.workspace(2, 3, 4).shape == (2, 3, 4)
