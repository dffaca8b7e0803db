"""Attention on CUDA by torch's FlashAttention, which reads block tables: one call for all rows of a step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.device import device_tensor
from aiochatstream.engines.transformers.kv_cache import KVCache


class VarlenAttention:
    """Attention of all tokens of a step. The keys and values are already in the cache."""

    def __init__(self, cache: KVCache, chunks: Sequence[Chunk], device: torch.device) -> None:
        lengths, ends = [len(chunk.ids) for chunk in chunks], [chunk.end for chunk in chunks]
        self._block_size, self._longest_chunk, self._longest_row = cache.block_size, max(lengths), max(ends)
        offsets, cached = ([0, *accumulate(numbers)] for numbers in (lengths, ends))
        self._offsets, self._cached, self._ends = (
            device_tensor(numbers, device, torch.int32) for numbers in (offsets, cached, ends)
        )
        blocks = cache.blocks_for(self._longest_row)
        tables = cache.tables.numpy()[[chunk.row for chunk in chunks], :blocks]
        self._tables = device_tensor(tables, device, torch.int32)
        self._tokens = offsets[-1]

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float,
        window: int | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the results [tokens, heads, head size], without padding.

        :param query: [heads, tokens, head size]
        :param keys: and ``values``: of the layer in the cache, [key-value heads, tokens, head size].
        :param sinks: [heads]
        """
        key, value = (
            part.view(len(part), -1, self._block_size, part.shape[2]).permute(1, 2, 0, 3) for part in (keys, values)
        )
        attend, auxiliary = _varlen_function()
        result: torch.Tensor
        result, sums = attend(
            query[:, : self._tokens].transpose(0, 1).contiguous(),
            key,
            value,
            self._offsets,
            self._cached,
            self._longest_chunk,
            self._longest_row,
            return_aux=auxiliary(lse=True),
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=True,
            seqused_k=self._ends,
            block_table=self._tables,
        )
        if sinks is not None:  # the sink takes its share of the weights of each head
            # torch's kernels return the sums [heads, tokens], whatever its documentation says
            result = result * torch.sigmoid(sums.transpose(0, 1) - sinks.float()).to(result.dtype)[..., None]
        return result


def is_available() -> bool:
    """Return True if torch's function supports block tables."""
    try:
        attend, _ = _varlen_function()
    except ImportError:
        return False
    return "block_table" in inspect.signature(attend).parameters


@functools.cache
def _varlen_function() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return torch's attention function, and the type of its request for sums."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn  # torch below 2.13 has neither

    return varlen_attn, AuxRequest
