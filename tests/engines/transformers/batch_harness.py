"""A one-layer model for tests of the batch. It is exact and fast, and its steps can wait for the test."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import Any

import pytest
import torch

from aiochatstream.engines.transformers import kv_cache
from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.engines.transformers.block_pool import BlockPool
from aiochatstream.engines.transformers.packed_step import PackedStep
from aiochatstream.engines.transformers.prefix_cache import PrefixCache
from aiochatstream.engines.transformers.request import Request
from aiochatstream.params import GenerationParams
from tests.helpers import PATIENCE

VOCABULARY, SIZE = 40, 6
CPU, DOUBLE = torch.device("cpu"), torch.float64

TOKEN_BYTES = 2 * SIZE * 8
"""Size of one token in the KV cache and in the prefix cache."""

BLOCK_SIZE = 4
"""Number of tokens in a block, few so that sequences have several blocks."""

ChunkTokens = tuple[int, tuple[int, ...]]
"""Start of a chunk and its token ids."""

MakeBatch = Callable[..., Batch]


class OneLayerModel:
    """Adds up the values of all tokens in a row, with the real attention and the real KV cache.

    A token that is missing in the cache, or belongs to another row, changes the answer.

    :param waits: whether each forward pass waits for :meth:`allow`.

    steps: chunks of each forward pass.
    error_for: returns an exception for a forward pass to raise, or None.
    change_logits: returns changed logits of a forward pass.
    """

    def __init__(self, *, waits: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self._values = torch.randn(VOCABULARY, SIZE, generator=generator, dtype=DOUBLE)
        self._out = torch.randn(SIZE, VOCABULARY, generator=generator, dtype=DOUBLE)
        self.steps: list[list[ChunkTokens]] = []
        self.error_for: Callable[[list[ChunkTokens]], BaseException | None] = lambda chunks: None
        self.change_logits: Callable[[list[ChunkTokens], torch.Tensor], torch.Tensor] = lambda chunks, logits: logits
        self._waits = waits
        self._permits, self._starts = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, step: PackedStep) -> torch.Tensor:
        ids, positions = step.ids[0], step.positions[0]
        ends = [0, *(step.output_positions + 1).tolist()]
        chunks = [(int(positions[start]), tuple(ids[start:end].tolist())) for start, end in pairwise(ends)]
        self.steps.append(chunks)
        self._starts.release()
        if self._waits:
            assert self._permits.acquire(timeout=PATIENCE), "the test does not allow this step"
        error = self.error_for(chunks)
        if error is not None:
            raise error
        values = self._value(ids, positions)
        zeros = torch.zeros(1, len(ids), SIZE, dtype=DOUBLE)
        mean = step.attend(0, zeros, zeros, values[None], scale=None, window=None, softcap=None)[:, 0]
        logits = (mean * (positions + 1)[:, None] + values)[step.output_positions] @ self._out
        return self.change_logits(chunks, logits)

    def answer(self, prompt: list[int], count: int) -> list[int]:
        """Return the greedy answer, computed without the package's code."""
        ids = list(prompt)
        for _ in range(count):
            values = self._value(torch.tensor(ids), torch.arange(len(ids)))
            ids.append(int(((values.sum(0) + values[-1]) @ self._out).argmax()))
        return ids[len(prompt) :]

    def wait_for_step(self) -> None:
        """Wait for the start of the next forward pass."""
        assert self._starts.acquire(timeout=PATIENCE), "no step started"

    def allow(self, steps: int = 1) -> None:
        """Allow forward passes to continue."""
        self._permits.release(steps)

    def step(self, count: int = 1) -> None:
        """Allow the running forward pass to end, and wait for the start of the next one; ``count`` times."""
        for _ in range(count):
            self.allow()
            self.wait_for_step()

    def run_freely(self) -> None:
        """Let all forward passes continue from now on."""
        self._waits = False
        self._permits.release(10_000)

    def _value(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self._values[ids] * torch.cos(positions.double() + 1)[:, None]


class Submission:
    """A submitted request, and the tokens that were read of its answer."""

    def __init__(self, batch: Batch, prompt: list[int], matcher: Any = None, **params: Any) -> None:
        self.prompt = prompt
        options = {"temperature": 0.0, "max_new_tokens": 4} | params
        self.request: Request = batch.submit(prompt, GenerationParams(**options), matcher)
        self._steps: Generator[int | None, None, None] = self.request.steps()
        self.tokens: list[int] = []

    def next(self) -> int | None:
        """Read the next step: a token or None."""
        token = next(self._steps)
        if token is not None:
            self.tokens.append(token)
        return token

    def read_all(self) -> list[int]:
        """Read the answer to its end and return all of its tokens."""
        for token in self._steps:
            if token is not None:
                self.tokens.append(token)
        return self.tokens

    def close(self) -> None:
        """Close the generator of steps."""
        self._steps.close()

    def cancel(self) -> None:
        """Cancel as for a client that disconnects while its thread waits for the next step."""
        self.request.cancelled = True


def batch_of(
    model: OneLayerModel,
    *,
    rows: int = 3,
    length: int = 64,
    tokens: int | None = None,
    prefix_tokens: int = 0,
    max_step: float | None = None,
    on_step: Callable[..., None] = lambda kind, seconds: None,
) -> Batch:
    """Return a batch of the model.

    :param tokens: capacity of the KV cache; None for full rows.
    :param prefix_tokens: capacity of the prefix cache.
    """
    like = [(torch.zeros(1, 1, 1, SIZE, dtype=DOUBLE),) * 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "BLOCK_SIZE", BLOCK_SIZE)
        cache = kv_cache.KVCache(like, rows=rows, length=length, tokens=rows * length if tokens is None else tokens)
    prefix_cache = PrefixCache(BlockPool(cache.blocks), BLOCK_SIZE, prefix_tokens // BLOCK_SIZE)
    return Batch(model, cache, rows, prefix_cache, CPU, DOUBLE, on_step, max_step)


def ids(length: int, seed: int = 0) -> list[int]:
    """Return random token ids."""
    return random.Random(seed).choices(range(VOCABULARY), k=length)  # noqa: S311


def lengths(step: list[ChunkTokens]) -> list[tuple[int, int]]:
    """Return start and length of each chunk."""
    return [(start, len(tokens)) for start, tokens in step]


def wait_until_idle(batch: Batch) -> None:
    deadline = time.monotonic() + PATIENCE
    while batch.metrics()["batch_size"]:
        assert time.monotonic() < deadline, "a row does not become free"
        time.sleep(0.001)
