"""Profile of a decoding step, measured with hooks on the unchanged model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from aiochatstream import GenerationParams
from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.cpu.packed_linear import PackedLinear
from aiochatstream.engines.transformers.kv_cache import Kernel, KVCache
from aiochatstream.engines.transformers.packed_forward import PackedForward
from aiochatstream.engines.transformers.packed_step import PackedStep
from aiochatstream.engines.transformers.sampler import Sampler
from aiochatstream.engines.transformers.sampling import sample

SHARES = ("linear layers", "attention", "rest of the model", "sampling", "preparing")
ALONE = "linear layers alone"
COMPILED = "step, compiled"
WARM_UP = 3


class StepProfiler:
    """Profiler of decoding steps with an engine's model, in this thread, on rows of arbitrary tokens.

    :param kernel: the engine's kernel for attention.
    """

    def __init__(
        self, model: Any, rows: int, context: int, kernel: Kernel | None, compiled: PackedForward | None = None
    ) -> None:
        self._model, self._forward, self._compiled = model, PackedForward(model), compiled
        self._kernel: Kernel | None = kernel
        self._rows, self._context = rows, context
        self._linears = [layer for layer in model.modules() if isinstance(layer, PackedLinear | torch.nn.Linear)]

    @torch.inference_mode()
    def measure(self, steps: int) -> dict[str, float]:
        """Return median milliseconds of each share, of their sum, and of the linear layers alone."""
        shares = self._profile(steps)
        times = {"rows": self._rows, "step": sum(shares.values()), **shares, ALONE: self._time_linears(steps)}
        return times if self._compiled is None else {**times, COMPILED: self._time_steps(self._compiled, steps)}

    def _profile(self, steps: int) -> dict[str, float]:
        samplers = self._samplers()
        times: dict[str, list[float]] = {share: [] for share in SHARES}
        for start, step in self._steps(steps):
            prepared = time.perf_counter()
            with self._timed_linears() as linears:
                logits = self._forward(step)
            computed = time.perf_counter()
            sample(logits, samplers, [[] for _ in samplers])
            sampled = time.perf_counter()
            rest = computed - prepared - linears[0] - step.attention_s
            shares = (linears[0], step.attention_s, rest, sampled - computed, prepared - start)
            for share, seconds in zip(SHARES, shares, strict=True):
                times[share].append(seconds * 1000)
        return {share: median(seconds[WARM_UP:]) for share, seconds in times.items()}

    def _time_steps(self, forward: PackedForward, steps: int) -> float:
        samplers = self._samplers()
        times = []
        for start, step in self._steps(steps):
            sample(forward(step), samplers, [[] for _ in samplers])
            times.append(time.perf_counter() - start)
        return median(times[WARM_UP:]) * 1000

    def _samplers(self) -> list[Sampler]:
        return [Sampler(GenerationParams(max_new_tokens=1, temperature=0.0)) for _ in range(self._rows)]

    def _steps(self, steps: int) -> Iterator[tuple[float, _TimedStep]]:
        """Yield the start of each step's preparation, and the step."""
        length = self._context + WARM_UP + steps
        cache = KVCache(self._layers(), rows=self._rows, length=length, kernel=self._kernel)
        for position in range(self._context, self._context + WARM_UP + steps):
            start = time.perf_counter()
            chunks = [Chunk(row, position, [position % 100]) for row in range(self._rows)]
            yield start, _TimedStep(cache, chunks, self._model.device, self._model.dtype)

    def _time_linears(self, rounds: int) -> float:
        widths = {layer.in_features for layer in self._linears}
        inputs = {width: torch.randn(1, self._rows, width, dtype=self._model.dtype) for width in widths}
        times = []
        for _ in range(WARM_UP + rounds):
            start = time.perf_counter()
            for layer in self._linears:
                layer(inputs[layer.in_features])  # layers with the same input share the tensor
            times.append(time.perf_counter() - start)
        return median(times[WARM_UP:]) * 1000

    def _layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return keys and values of one token."""
        cache = DynamicCache(config=self._model.config)
        self._model(input_ids=torch.tensor([[1]], device=self._model.device), past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    @contextmanager
    def _timed_linears(self) -> Iterator[list[float]]:
        total, start = [0.0], [0.0]

        def before(*_: object) -> None:
            start[0] = time.perf_counter()

        def after(*_: object) -> None:
            total[0] += time.perf_counter() - start[0]

        with ExitStack() as hooks:
            for layer in self._linears:
                hooks.enter_context(_removed(layer.register_forward_pre_hook(before)))
                hooks.enter_context(_removed(layer.register_forward_hook(after)))
            yield total


class _TimedStep(PackedStep):
    attention_s = 0.0

    def attend(self, *args: Any, **options: Any) -> torch.Tensor:
        start = time.perf_counter()
        output = super().attend(*args, **options)
        self.attention_s += time.perf_counter() - start
        return output


@contextmanager
def _removed(hook: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()
