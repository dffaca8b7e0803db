"""Where the milliseconds of one decode step go, timed from outside the model: nothing of it is changed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache

from aiochatstream import GenerationParams
from aiochatstream.engines.transformers.cpu.prepacked_linear import PrepackedLinear
from aiochatstream.engines.transformers.kv_cache import KVCache
from aiochatstream.engines.transformers.packed_forward import PackedForward
from aiochatstream.engines.transformers.packed_step import Chunk, PackedStep
from aiochatstream.engines.transformers.sampler import Sampler
from aiochatstream.engines.transformers.sampling import sample

SHARES = ("linear layers", "attention", "rest of the model", "sampling", "preparing")
ALONE = "linear layers alone"
COMPILED = "step, compiled"
WARM_UP = 3


class Steps:
    """Decode steps of a model that an engine has set up, in this thread, over rows of random tokens."""

    def __init__(self, model: Any, rows: int, context: int, compiled: PackedForward | None = None) -> None:
        self._model, self._forward, self._compiled = model, PackedForward(model), compiled
        self._rows, self._context = rows, context
        self._linears = [layer for layer in model.modules() if isinstance(layer, PrepackedLinear | torch.nn.Linear)]

    @torch.inference_mode()
    def measure(self, steps: int) -> dict[str, float]:
        """Median milliseconds of each share, of all together, and of the linear layers alone."""
        shares = self._profile(steps)
        told = {"rows": self._rows, "step": sum(shares.values()), **shares, ALONE: self._alone(steps)}
        return told if self._compiled is None else {**told, COMPILED: self._whole(self._compiled, steps)}

    def _profile(self, steps: int) -> dict[str, float]:
        samplers = self._samplers()
        taken: dict[str, list[float]] = {share: [] for share in SHARES}
        for began, step in self._each(steps):
            prepared = time.perf_counter()
            with self._timed_linears() as linears:
                logits = self._forward(step)
            computed = time.perf_counter()
            sample(logits, samplers, [[] for _ in samplers])
            sampled = time.perf_counter()
            rest = computed - prepared - linears[0] - step.attention_s
            shares = (linears[0], step.attention_s, rest, sampled - computed, prepared - began)
            for share, seconds in zip(SHARES, shares, strict=True):
                taken[share].append(seconds * 1000)
        return {share: median(times[WARM_UP:]) for share, times in taken.items()}

    def _whole(self, forward: PackedForward, steps: int) -> float:
        samplers = self._samplers()
        times = []
        for began, step in self._each(steps, native=True):
            sample(forward(step), samplers, [[] for _ in samplers])
            times.append(time.perf_counter() - began)
        return median(times[WARM_UP:]) * 1000

    def _samplers(self) -> list[Sampler]:
        return [Sampler(GenerationParams(max_new_tokens=1, temperature=0.0)) for _ in range(self._rows)]

    def _each(self, steps: int, *, native: bool = False) -> Iterator[tuple[float, _TimedStep]]:
        """When each step began to be prepared, and the step."""
        cache = KVCache(self._layers(), self._rows, self._context + WARM_UP + steps, native=native)
        for at in range(self._context, self._context + WARM_UP + steps):
            began = time.perf_counter()
            chunks = [Chunk(row, at, [at % 100]) for row in range(self._rows)]
            yield began, _TimedStep(cache, chunks, self._model.device, self._model.dtype)

    def _alone(self, rounds: int) -> float:
        widths = {width: torch.randn(1, self._rows, width, dtype=self._model.dtype) for width in self._widths()}
        times = []
        for _ in range(WARM_UP + rounds):
            began = time.perf_counter()
            for layer in self._linears:
                layer(widths[layer.in_features])  # the same object for layers that share their input
            times.append(time.perf_counter() - began)
        return median(times[WARM_UP:]) * 1000

    def _layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of one token."""
        kept = DynamicCache(config=self._model.config)
        self._model(input_ids=torch.tensor([[1]], device=self._model.device), past_key_values=kept, use_cache=True)
        return [(layer.keys, layer.values) for layer in kept.layers]

    def _widths(self) -> set[int]:
        return {layer.in_features for layer in self._linears}

    @contextmanager
    def _timed_linears(self) -> Iterator[list[float]]:
        took, began = [0.0], [0.0]

        def before(*_: Any) -> None:
            began[0] = time.perf_counter()

        def after(*_: Any) -> None:
            took[0] += time.perf_counter() - began[0]

        with ExitStack() as hooks:
            for layer in self._linears:
                hooks.enter_context(_removed(layer.register_forward_pre_hook(before)))
                hooks.enter_context(_removed(layer.register_forward_hook(after)))
            yield took


class _TimedStep(PackedStep):
    attention_s = 0.0

    def attend(self, *args: Any, **options: Any) -> torch.Tensor:
        began = time.perf_counter()
        answer = super().attend(*args, **options)
        self.attention_s += time.perf_counter() - began
        return answer


@contextmanager
def _removed(hook: Any) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()
