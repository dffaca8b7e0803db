"""Tests of attention by block tables on a CUDA device that a CPU imitates, compared with attention on the CPU."""

from __future__ import annotations

import random

import pytest
import torch

from aiochatstream.engines.transformers import varlen_attention
from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.kv_cache import KVCache, supports
from aiochatstream.engines.transformers.packed_step import PackedStep
from tests.engines.transformers.fake_devices import FakeDevice, value_of

pytestmark = pytest.mark.slow

ROWS, LENGTH, KV_HEADS, SHARING, SIZE = 3, 700, 2, 2, 16
HALF, CPU = torch.float16, torch.device("cpu")
SCHEDULE = [{0: 5, 2: 300}, {0: 1, 1: 256, 2: 40}, {0: 1, 1: 1, 2: 1}, {2: 1}, {0: 1, 1: 300, 2: 1}, {1: 1, 2: 1}]


def cache_on(device: torch.device) -> KVCache:
    """Return a cache whose rows have their blocks in a random order."""
    like = [(torch.zeros(1, KV_HEADS, 1, SIZE, dtype=HALF, device=device),) * 2]
    on_cuda = device.type == "cuda"
    assert supports("varlen", like) == on_cuda
    cache = KVCache(like, rows=ROWS, length=LENGTH, kernel="varlen" if on_cuda else None)
    blocks = [*range(cache.blocks)]
    random.Random(0).shuffle(blocks)  # noqa: S311
    count = len(blocks) // ROWS
    for row in range(ROWS):
        cache.assign(row, blocks[row * count : (row + 1) * count])
    return cache


@pytest.mark.parametrize("window", [None, 1, 50, 300])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_rows_attend_as_on_a_cpu(window: int | None, has_sinks: bool, scale: float | None) -> None:
    assert varlen_attention.is_available()
    generator = torch.Generator().manual_seed(0)
    sinks = torch.linspace(-1, 1, KV_HEADS * SHARING, dtype=HALF) if has_sinks else None
    with FakeDevice("cuda") as device, torch.inference_mode():
        caches = [cache_on(device.device), cache_on(CPU)]
        lengths = dict.fromkeys(range(ROWS), 0)
        device.waits.clear()
        for counts in SCHEDULE:
            chunks = [Chunk(row, lengths[row], [1] * count) for row, count in counts.items()]
            chunks.sort(key=lambda chunk: len(chunk.ids) > 1)
            lengths |= {chunk.row: chunk.end for chunk in chunks}
            results: list[torch.Tensor] = []
            for cache, place in zip(caches, (device.device, CPU), strict=True):
                step = PackedStep(cache, chunks, place, HALF)
                if not results:
                    tokens = step.ids.shape[1]
                    query, key, value = (
                        torch.randn(heads, tokens, SIZE, generator=generator).to(HALF)
                        for heads in (KV_HEADS * SHARING, KV_HEADS, KV_HEADS)
                    )
                inputs = [part.to(place) for part in (query, key, value)]
                placed = None if sinks is None else sinks.to(place)
                device.waits.clear()
                results.append(step.attend(0, *inputs, scale=scale, window=window, softcap=None, sinks=placed))
                assert device.waits == []
            on_device, on_cpu = value_of(results[0]), results[1]
            assert torch.allclose(on_device.float(), on_cpu.float(), atol=0.01)
