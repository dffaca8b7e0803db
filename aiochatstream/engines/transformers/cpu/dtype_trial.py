"""Measurement of the dtype in which this CPU computes a model fastest.

Features of a CPU do not tell: bfloat16 halves the memory that a generated token reads, but on some CPUs its products of
many tokens, of which the time to the first token consists, take several times as long as those of float32.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import nn

from aiochatstream.engines.transformers.cpu.openmp import single_thread
from aiochatstream.engines.transformers.cpu.packed_linear import SIBLINGS
from aiochatstream.engines.transformers.cpu.processor import describe_processor

logger = logging.getLogger(__name__)

PROMPT_TOKENS, ANSWER_TOKENS = 280, 64
"""Tokens of a typical answer. Half of such answers are generated alone, half in a batch."""

BATCH, CHUNK = 8, 128
"""Tokens of a measured step in which a batch decodes, and of one that reads a prompt."""

MIN_GAIN = 1.1
"""Minimum gain in speed for which float32 is chosen: it takes twice the memory."""

MAX_SHAPES = 4
"""Number of shapes that are measured, those with the most weights."""

MAX_WEIGHTS = 2**19
"""Maximum number of weights of a measured layer. The times of a larger one are extrapolated from a part of it."""

MEASURED_BYTES = 2**26
"""Approximate size of the weights of the steps that decode, so that they are read from memory, not from caches."""

ROUNDS = 4
"""Number of measurements of each layer, of which the shortest counts."""

LOCK_SECONDS = 60.0
"""Seconds to wait for other processes that measure."""

VERSION = 1
"""Number that increases with each change of the measurement."""


Layer = Callable[[torch.Tensor], torch.Tensor]
"""Function that computes a linear layer."""


class LinearShape(NamedTuple):
    """Shape of linear layers.

    inputs, outputs: numbers of features.
    layers: number of layers of this shape.
    is_head: True for the output layer, which computes only the last token of a prompt.
    """

    inputs: int
    outputs: int
    layers: int
    is_head: bool = False


TYPICAL_SHAPES = (LinearShape(1024, 1536, 24), LinearShape(1024, 8192, 24), LinearShape(4096, 1024, 24))
"""Shapes for an unknown model."""


def linear_shapes(model: Any) -> tuple[LinearShape, ...]:
    """Return the shapes of the linear layers of a language model, also if it is on the device ``meta``.

    Layers that the engine combines count as one. A model without linear layers has typical shapes.
    """
    head = model.get_output_embeddings()
    shapes = Counter[tuple[int, int, bool]]()
    for parent in model.modules():
        outputs = Counter[tuple[Any, int, bool]]()
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                group = next((names for names in SIBLINGS if name in names), name)
                outputs[group, child.in_features, child is head] += child.out_features
        shapes.update((inputs, size, is_head) for (_, inputs, is_head), size in outputs.items())
    result = [LinearShape(inputs, size, count, is_head) for (inputs, size, is_head), count in shapes.items()]
    return tuple(sorted(result, reverse=True)) or TYPICAL_SHAPES


def fastest_dtype(shapes: Sequence[LinearShape]) -> torch.dtype:
    """Return float32 or bfloat16, and log the reason."""
    seconds = seconds_by_dtype(shapes)
    name = "float32" if seconds["float32"] * MIN_GAIN < seconds["bfloat16"] else "bfloat16"
    logger.info(
        "dtype: %s, by measuring: the linear layers of an answer take %.2g s in float32 and %.2g s in bfloat16 "
        "with a thread of this CPU.",
        name,
        *seconds.values(),
    )
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def seconds_by_dtype(shapes: Sequence[LinearShape]) -> dict[str, float]:
    """Return :func:`answer_seconds` for the names of the dtypes among which :func:`fastest_dtype` chooses."""
    return {name: answer_seconds(shapes, getattr(torch, name)) for name in ("float32", "bfloat16")}


def is_slow(shapes: Sequence[LinearShape], dtype: torch.dtype) -> bool:
    """Return True if float32 is faster than ``dtype``."""
    if dtype == torch.float32:
        return False
    return answer_seconds(shapes, torch.float32) * MIN_GAIN < answer_seconds(shapes, dtype)


def answer_seconds(shapes: Sequence[LinearShape], dtype: torch.dtype) -> float:
    """Return the seconds of linear layers in a typical answer; infinity if this CPU has no kernels for ``dtype``.

    They are measured once, in about a second, and stored in the user's cache folder. Several processes may call this
    concurrently: one measures, the others wait.
    """
    machine = [*describe_processor(), torch.__version__, VERSION]
    key = json.dumps([*machine, str(dtype), shapes])
    folder = user_cache_path("aiochatstream") / "dtypes"
    file = folder / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.json"
    if seconds := _read(file):
        return seconds
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock", timeout=LOCK_SECONDS):
            if seconds := _read(file):
                return seconds
            seconds = _measure(shapes, dtype)
            _write(file, seconds)
        return seconds
    except (OSError, NotImplementedError) as error:  # for example a file system without locks
        logger.debug("Times of linear layers are not stored: %s", error)
        return _measure(shapes, dtype)


def _read(file: Path) -> float | None:
    """Return the seconds in ``file``; None if there are none."""
    try:
        seconds = float(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return seconds if seconds > 0 else None


def _write(file: Path, seconds: float) -> None:
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as stream:
        stream.write(json.dumps(seconds))
    os.replace(stream.name, file)


def _measure(shapes: Sequence[LinearShape], dtype: torch.dtype) -> float:
    largest = sorted(shapes, key=lambda shape: -shape.inputs * shape.outputs * shape.layers)[:MAX_SHAPES]
    try:
        alone, batch, chunk = _step_seconds(largest, dtype)
    except RuntimeError:  # no kernels
        return float("inf")
    return PROMPT_TOKENS / CHUNK * chunk + ANSWER_TOKENS * (alone + batch / BATCH) / 2


@torch.inference_mode()
def _step_seconds(shapes: Sequence[LinearShape], dtype: torch.dtype) -> list[float]:
    """Return the seconds of linear layers in a step of 1 token, of :data:`BATCH` and of :data:`CHUNK` tokens.

    They are those of a single thread. With several, each product waits for the slowest thread, and another busy process
    would falsify the times.
    """
    sizes = [min(shape.outputs, max(1, MAX_WEIGHTS // shape.inputs)) for shape in shapes]
    linears = [
        nn.Linear(shape.inputs, size, bias=False, dtype=dtype) for shape, size in zip(shapes, sizes, strict=True)
    ]
    weights = sum(linear.weight.nbytes for linear in linears)
    copies = min(MEASURED_BYTES // weights + 1, max(shape.layers for shape in shapes))
    models = [[_pack(linear) for linear in linears] for _ in range(copies)]
    result = []
    for tokens in (1, BATCH, CHUNK):
        inputs = [torch.ones(tokens, shape.inputs, dtype=dtype) for shape in shapes]
        seconds = _layer_seconds(models[:1] if tokens == CHUNK else models, inputs)
        result.append(
            sum(
                shortest * shape.layers * shape.outputs / size
                for shape, size, shortest in zip(shapes, sizes, seconds, strict=True)
                if tokens < CHUNK or not shape.is_head
            )
        )
    return result


def _pack(linear: nn.Linear) -> Layer:
    """Return a packed copy of a layer, as :class:`OneDNNWeights` packs it; a layer without kernels as it is.

    It gets no number: those of the engine's layers are in compiled code, and must not depend on earlier measurements.
    """
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
    except (RuntimeError, AttributeError):
        return linear
    return lambda inputs: torch.ops.mkldnn._linear_pointwise(inputs, weight, None, "none", [], "")


def _layer_seconds(models: Sequence[Sequence[Layer]], inputs: Sequence[torch.Tensor]) -> list[float]:
    """Return the shortest time of each layer.

    :param models: copies of all layers.
    :param inputs: input of each layer.
    """
    shortest = [float("inf")] * len(inputs)
    with single_thread():
        for layers in [*models] * ROUNDS:
            for at, layer in enumerate(layers):
                start = time.perf_counter()
                layer(inputs[at])
                shortest[at] = min(shortest[at], time.perf_counter() - start)
    return shortest
