"""Schedules of requests for the batch of a tiny model, step by step, and the answers of ``model.generate``."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.engines.transformers.block_pool import BlockPool
from aiochatstream.engines.transformers.kv_cache import Kernel, KVCache
from aiochatstream.engines.transformers.packed_step import PackedStep
from aiochatstream.engines.transformers.prefix_cache import SHARED, PrefixCache
from aiochatstream.engines.transformers.request import Request
from aiochatstream.engines.transformers.state_cache import StateCache
from aiochatstream.params import GenerationParams
from tests.engines.transformers.engine_harness import load_engine
from tests.engines.transformers.tiny_models import reference, some_ids, tiny
from tests.helpers import PATIENCE

FAMILIES = {
    "Llama": 2,
    "Qwen3": 2,
    "Gemma 3": 6,
    "GPT-OSS, with sinks": 2,
    "DeepSeek-V3, with latent attention": 2,
    "Mamba 2": 2,
    "LFM2": 2,
    "Qwen3-Next": 3,
    "Qwen3.5": 3,
    "Granite 4": 3,
    "Falcon-H1": 2,
}
"""Number of layers of each model: one of each kind."""

WINDOW = 24
BLOCKS_PER_ROW, LENGTH = 8, 128
ANSWER_LENGTH = 6
STEP_TOKENS = 16
"""Number of prompt tokens in a step, few so that requests come and go while others are read."""

TEXTS = [some_ids(LENGTH, seed) for seed in range(3)]
PREFIX = TEXTS[0][:21]
"""Tokens that the server puts before conversations. They end inside a block."""


class TinyModel:
    """A model whose forward pass an engine has packed, and the answers of an unmodified copy."""

    def __init__(self, family: str) -> None:
        windows = {"sliding_window": WINDOW} if family in ("Gemma 3", "GPT-OSS, with sinks") else {}
        model = tiny(family, FAMILIES[family], **windows)
        self.plain = copy.deepcopy(model)
        self.engine = load_engine(model, context_len=LENGTH)
        assert isinstance(self.engine.decoder, Batch), self.engine.batch_obstacle
        self.forward, cache = self.engine.decoder.forward, self.engine.decoder.kv_cache
        self.kernels: list[Kernel | None] = [cache.kernel] if cache.kernel is None else [cache.kernel, None]
        self.layers = [tuple(part[None, :, :1] for part in layer) for layer in cache.layers]
        self.states = {key: state[:1] for key, state in cache.states.tensors.items()}
        self.error: Exception | None = None
        """Exception that the next forward pass raises after its last layer."""
        model.get_output_embeddings().register_forward_pre_hook(self._raise)
        self._answers: dict[tuple[int, ...], list[int]] = {}
        self._logprobs: dict[tuple[int, ...], list[float]] = {}

    def answer(self, ids: list[int]) -> list[int]:
        """Return the greedy answer of ``model.generate``."""
        key = tuple(ids)
        if key not in self._answers:
            self._answers[key] = reference(self.plain, ids, ANSWER_LENGTH)
        return self._answers[key]

    def logprobs(self, ids: list[int]) -> list[float]:
        """Return the logprob of each token of ``ids`` and its answer, from the second one on."""
        key = tuple(ids)
        if key not in self._logprobs:
            tokens = torch.tensor([ids + self.answer(ids)])
            with torch.inference_mode():
                logprobs = self.plain(input_ids=tokens).logits[:, :-1].log_softmax(-1)
            self._logprobs[key] = logprobs.gather(2, tokens[:, 1:, None]).flatten().tolist()
        return self._logprobs[key]

    def _raise(self, module: torch.nn.Module, inputs: Any) -> None:
        if self.error is not None:
            raise self.error


@dataclass(frozen=True)
class Memory:
    """Sizes of the caches.

    kernel: index of the kernel.
    """

    rows: int
    blocks: int
    max_blocks: int
    snapshots: int
    kernel: int


@dataclass(eq=False)
class Entry:
    """A request, its prompt, and the number of its next forward passes that raise."""

    prompt: list[int]
    request: Request
    failures: int = 0
    may_fail: bool = False
    tokens: list[int] = field(default_factory=list)
    error: Exception | None = None

    def read(self) -> None:
        """Read all steps so far."""
        while not self.request.output.empty():
            step = self.request.output.get()
            if isinstance(step, Exception):
                self.error = self.error or step
            elif step is not None:
                self.tokens.append(step)


class Run:
    """A schedule on a new batch. Each forward pass waits until the schedule allows it."""

    def __init__(self, model: TinyModel, memory: Memory) -> None:
        self.model, self.memory = model, memory
        states = StateCache(model.states, memory.rows, memory.snapshots)
        kernel = model.kernels[memory.kernel % len(model.kernels)]
        tokens = memory.blocks * LENGTH // BLOCKS_PER_ROW
        cache = KVCache(model.layers, states, rows=memory.rows, length=LENGTH, tokens=tokens, kernel=kernel)
        assert cache.blocks == memory.blocks
        prefix_cache = PrefixCache(BlockPool(cache.blocks), cache.block_size, memory.max_blocks, states)
        device, dtype = model.plain.device, model.plain.dtype
        self.entries: list[Entry] = []
        self._changed = threading.Condition()
        self._permits, self._waits = 0, False
        self.memory_error = False
        self.invalid: set[int] = set()
        self.batch = Batch(self._forward, cache, memory.rows, prefix_cache, device, dtype, lambda kind, seconds: None)

    def submit(self, prompt: list[int], count: int, owner: str, *, scored: bool = False, failures: int = 0) -> None:
        shared_tokens = len(PREFIX) if prompt[: len(PREFIX)] == PREFIX and owner != SHARED else 0
        params = GenerationParams(temperature=0, max_new_tokens=count, logprobs=0, prompt_logprobs=scored)
        request = self.batch.submit(prompt, params, owner=owner, shared_tokens=shared_tokens)
        self.entries.append(Entry(prompt, request, failures))
        self._settle()

    def step(self, count: int) -> None:
        """Compute forward passes."""
        for _ in range(count):
            with self._changed:
                if not self._waits:
                    return
                self._permits, self._waits = 1, False
                self._changed.notify_all()
            self._settle()

    def finish(self) -> None:
        """Compute all answers and end the thread."""
        while self._waits:
            self.step(1)
        self.batch.close()
        for entry in self.entries:
            entry.read()

    def _settle(self) -> None:
        """Wait until a forward pass waits or all requests have ended."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not (self._waits or self._is_idle):
                assert time.monotonic() < deadline, "the batch does not continue"
                self._changed.wait(0.001)

    @property
    def _is_idle(self) -> bool:
        return not (self.batch._arrivals or self.batch.rows.requests)

    def _forward(self, step: PackedStep) -> torch.Tensor:
        with self._changed:
            self._waits = True
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._permits, PATIENCE), "the schedule does not allow this step"
            self._permits = 0
        entries = [self._entry(chunk.row) for chunk in step.states._chunks]
        self.model.error = self._next_error(entries)
        logits = self.model.forward(step)
        for at, entry in enumerate(entries):
            if self.entries.index(entry) in self.invalid:
                logits[at] = torch.nan
                entry.may_fail = True
        return logits

    def _entry(self, row: int) -> Entry:
        (request,) = (request for request in self.batch.rows.requests if request.row == row)
        return next(entry for entry in self.entries if entry.request is request)

    def _next_error(self, entries: Sequence[Entry]) -> Exception | None:
        if self.memory_error:
            self.memory_error = False
            max(entries, key=lambda entry: self.batch.rows.requests.index(entry.request)).may_fail = True
            return MemoryError("none left")
        failing = [entry for entry in entries if entry.failures]
        for entry in failing:
            entry.failures -= 1
            entry.may_fail = entry.may_fail or len(entries) == 1
        return ZeroDivisionError("row") if failing else None


@dataclass(frozen=True)
class Submit:
    """A prompt: tokens of an earlier conversation, without some of its last ones, and new tokens after them.

    base: number of the conversation, counted from the latest one; None for a new one.
    failures: number of its first forward passes that raise.
    steps: number of forward passes before the next event.
    """

    base: int | None
    removed_tokens: int
    text: int
    new_tokens: int
    count: int
    owner: str = "anna"
    scored: bool = False
    failures: int = 0
    steps: int = 0

    def apply(self, run: Run) -> None:
        ids: list[int] = []
        if self.base is not None and run.entries:
            before = run.entries[-1 - self.base % len(run.entries)].prompt
            ids = before + run.model.answer(before)
            ids = ids[: len(ids) - self.removed_tokens]
        ids = (ids + TEXTS[self.text][: self.new_tokens])[: LENGTH - ANSWER_LENGTH] or TEXTS[self.text][:1]
        run.submit(ids, self.count, self.owner, scored=self.scored, failures=self.failures)
        run.step(self.steps)


@dataclass(frozen=True)
class Share:
    """Computation of the common prefix for all owners."""

    def apply(self, run: Run) -> None:
        run.submit(PREFIX, 1, SHARED)


@dataclass(frozen=True)
class Step:
    count: int

    def apply(self, run: Run) -> None:
        run.step(self.count)


@dataclass(frozen=True)
class Forget:
    owner: str

    def apply(self, run: Run) -> None:
        run.batch.forget(self.owner)


@dataclass(frozen=True)
class Cancel:
    """Cancellation of a request, counted from the latest one."""

    number: int

    def apply(self, run: Run) -> None:
        if self.number < len(run.entries):
            run.entries[-1 - self.number].request.cancelled = True


@dataclass(frozen=True)
class Fail:
    """Errors of the next forward passes with a request, or NaN among its logits."""

    number: int
    failures: int

    def apply(self, run: Run) -> None:
        if self.number < len(run.entries):
            if self.failures:
                run.entries[-1 - self.number].failures = self.failures
            else:
                run.invalid.add(len(run.entries) - 1 - self.number)


@dataclass(frozen=True)
class RunOutOfMemory:
    """Lack of memory in the next forward pass."""

    def apply(self, run: Run) -> None:
        run.memory_error = True
