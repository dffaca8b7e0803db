"""Division of a device's memory between rows and earlier prompts."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

KV_CACHE_SHARE = 0.5
"""Default maximum size of keys, values and states, as a share of the memory that is free when the model is loaded."""

KV_CACHE_CONTEXTS = 2
"""Default maximum size of the keys and values in whole contexts per row: one for the row, one for earlier prompts."""

SNAPSHOT_SHARE, MAX_SNAPSHOTS = 0.25, 1024
"""Maximum size, as a share of the whole, and number of the states of rows and earlier prompts."""

MIN_CONTEXT = 16
"""Minimum number of tokens per row."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Sizes of the caches.

    max_bytes: maximum size of all keys and values.
    tokens: number of tokens of all rows and earlier prompts together.
    context_len: maximum number of tokens of a row.
    snapshots: number of earlier prompts whose states are stored.
    """

    max_bytes: int
    tokens: int
    context_len: int
    snapshots: int = 0


def plan_memory(
    device: torch.device,
    kv_cache_bytes: int | None,
    *,
    rows: int,
    context_len: int,
    token_bytes: int,
    block_size: int = 1,
    state_bytes: int = 0,
    caches_prefixes: bool = True,
) -> MemoryPlan:
    """Return the sizes of the caches on ``device``. Raise ValueError if ``kv_cache_bytes`` is too small.

    :param kv_cache_bytes: maximum size of all of them; None for a share of the free memory.
    :param context_len: maximum number of tokens of a row, which may have to be smaller.
    :param token_bytes: size of the keys and values of a token; 0 for a model without attention.
    :param state_bytes: size of the states of a row.
    """
    max_bytes = int(free_bytes(device) * KV_CACHE_SHARE) if kv_cache_bytes is None else kv_cache_bytes
    snapshots = 0
    if state_bytes:
        if caches_prefixes:
            snapshots = max(0, min(MAX_SNAPSHOTS, int(max_bytes * SNAPSHOT_SHARE) // state_bytes - rows))
        max_bytes -= (rows + snapshots) * state_bytes
    context_blocks = -(-context_len // block_size)
    if not token_bytes:
        return MemoryPlan(max_bytes, rows * context_blocks * block_size, context_len, snapshots)
    blocks = max_bytes // (token_bytes * block_size)
    if kv_cache_bytes is None:
        blocks = min(blocks, rows * context_blocks * KV_CACHE_CONTEXTS)
    minimum = max(MIN_CONTEXT, block_size)
    if blocks * block_size < min(minimum, context_len):
        states = (rows + snapshots) * state_bytes
        raise ValueError(
            f"kv_cache_bytes: must be at least {states + minimum * token_bytes} for {minimum} tokens, "
            f"not {max_bytes + states}."
        )
    return MemoryPlan(max_bytes, blocks * block_size, min(context_len, blocks * block_size), snapshots)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of ``device``."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
