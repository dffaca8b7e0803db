"""A model of one layer for tests of the batch: exact, quick, and it steps only when the test allows it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import Any

import torch

from aiochatstream.engines.transformers.attention import Step
from aiochatstream.engines.transformers.batch import Batch, Request
from aiochatstream.engines.transformers.kv_cache import SlotCache
from aiochatstream.engines.transformers.prefix_cache import PrefixPool
from aiochatstream.params import GenerationParams
from tests.helpers import PATIENCE

VOCABULARY, SIZE = 40, 6
CPU, DOUBLE = torch.device("cpu"), torch.float64

Read = tuple[int, tuple[int, ...]]
"""Where a piece starts, and its token ids."""


class OneLayer:
    """Adds up the values of all tokens that a row has seen, through the real attention and the real slot cache.

    A token that is missing from the cache, or is another row's, changes the answer. ``steps`` tells what each forward
    pass read; ``fail`` may return an exception for it to raise.
    """

    def __init__(self, *, free: bool = True) -> None:
        draw = torch.Generator().manual_seed(0)
        self._values = torch.randn(VOCABULARY, SIZE, generator=draw, dtype=DOUBLE)
        self._out = torch.randn(SIZE, VOCABULARY, generator=draw, dtype=DOUBLE)
        self.steps: list[list[Read]] = []
        self.fail: Callable[[list[Read]], BaseException | None] = lambda pieces: None
        self.change: Callable[[list[Read], torch.Tensor], torch.Tensor] = lambda pieces, logits: logits
        self._free = free
        self._permits, self._begun = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, step: Step) -> torch.Tensor:
        ids, places = step.ids[0], step.positions[0]
        ends = [0, *(step.last + 1).tolist()]
        pieces = [(int(places[begin]), tuple(ids[begin:end].tolist())) for begin, end in pairwise(ends)]
        self.steps.append(pieces)
        self._begun.release()
        if not self._free:
            assert self._permits.acquire(timeout=PATIENCE), "the test forgot about this step"
        error = self.fail(pieces)
        if error is not None:
            raise error
        values = self._value(ids, places)
        nothing = torch.zeros(1, len(ids), SIZE, dtype=DOUBLE)
        mean = step.attend(0, nothing, nothing, values[None], scale=None, window=None, softcap=None)[:, 0]
        logits = (mean * (places + 1)[:, None] + values)[step.last] @ self._out
        return self.change(pieces, logits)

    def answer(self, prompt: list[int], count: int) -> list[int]:
        """What the model says greedily, computed without any of the package's code."""
        ids = list(prompt)
        for _ in range(count):
            values = self._value(torch.tensor(ids), torch.arange(len(ids)))
            ids.append(int(((values.sum(0) + values[-1]) @ self._out).argmax()))
        return ids[len(prompt) :]

    def wait(self) -> None:
        """Return when the next forward pass has begun (each is waited for once)."""
        assert self._begun.acquire(timeout=PATIENCE), "no step began"

    def allow(self, steps: int = 1) -> None:
        """Let so many forward passes, begun or not, go on."""
        self._permits.release(steps)

    def step(self) -> None:
        """Let the forward pass that has begun end, and wait for the next one."""
        self.allow()
        self.wait()

    def release(self) -> None:
        """From now on nothing waits."""
        self._free = True
        self._permits.release(10_000)

    def _value(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return self._values[ids] * torch.cos(places.double() + 1)[:, None]


class Asked:
    """One request, and what was read of its answer."""

    def __init__(self, batch: Batch, prompt: list[int], **params: Any) -> None:
        given = GenerationParams(**{"temperature": 0.0, "max_new_tokens": 4} | params)
        self.prompt = prompt
        self.request: Request = batch.answer(prompt, given)
        self._steps: Generator[int | None, None, None] = self.request.steps()
        self.tokens: list[int] = []

    def next(self) -> int | None:
        """What the next step gave: a token or None."""
        token = next(self._steps)
        if token is not None:
            self.tokens.append(token)
        return token

    def rest(self) -> list[int]:
        """The whole answer, when it is over."""
        self.tokens += [token for token in self._steps if token is not None]
        return self.tokens

    def cancel(self) -> None:
        """As a client does that leaves while its worker thread waits for the next step."""
        self.request.cancelled = True


def batch_of(
    forward: Any,
    *,
    rows: int = 3,
    length: int = 64,
    pool_bytes: int = 0,
    max_step: float | None = None,
    on_step: Callable[..., None] = lambda kind, seconds: None,
) -> Batch:
    like = [(torch.zeros(1, 1, 1, SIZE, dtype=DOUBLE),) * 2]
    cache = SlotCache(like, rows, length)
    return Batch(forward, cache, rows, PrefixPool(like, pool_bytes), CPU, DOUBLE, on_step, max_step)


TOKEN_BYTES = 2 * SIZE * 8
"""That one token takes in the cache and in the pool."""
