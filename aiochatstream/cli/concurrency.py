"""The default of ``--concurrency``: the number of answers that suits a device."""

from __future__ import annotations

from aiochatstream.runtime.engine_runtime import DEFAULT_SLOTS

CPU_SLOTS, CUDA_SLOTS = 8, 32
"""Concurrent answers of a model on a CPU or MPS, and on a device of CUDA."""


def default_slots(device: str, *, batched: bool = True) -> int:
    """Return the number of concurrent answers of a model.

    :param device: for example ``cpu`` or ``cuda:1``.
    :param batched: False if the engine decodes the answers one at a time.
    """
    if not batched:
        return DEFAULT_SLOTS
    return CUDA_SLOTS if device.partition(":")[0] == "cuda" else CPU_SLOTS
