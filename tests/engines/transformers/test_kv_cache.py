"""Tests of the KV cache."""

from __future__ import annotations

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


def test_clearing_a_row_leaves_the_others() -> None:
    cache = random_cache()
    cache.clear(1)
    assert not any(tensor.any() for tensor in cache.row(1))
    assert all(tensor.all() for row in (0, 2) for tensor in cache.row(row))


def test_the_workspace_is_reused() -> None:
    cache = random_cache()
    large = cache.workspace(4, 6)
    assert cache.workspace(3, 2).data_ptr() == large.data_ptr()
    assert cache.workspace(2, 3, 4).shape == (2, 3, 4)
