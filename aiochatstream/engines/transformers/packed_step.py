"""The tokens of one forward pass, packed into a batch of one, and their attention.

The tokens of all rows follow one another, so that the model's linear layers compute no padding except what rounds up
the step's size. Each token attends to the keys and values of its own row in the KV cache.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from aiochatstream.engines.transformers.chunk import Chunk, padded_size
from aiochatstream.engines.transformers.cpu.native import decode_attention
from aiochatstream.engines.transformers.device import device_tensor
from aiochatstream.engines.transformers.grouped_attention import GroupedAttention
from aiochatstream.engines.transformers.kv_cache import KVCache
from aiochatstream.engines.transformers.state_cache import StepStates
from aiochatstream.engines.transformers.varlen_attention import VarlenAttention


class PackedStep:
    """Inputs of one forward pass as tensors, and the attention of its tokens.

    ids, positions: [1, tokens], of all tokens; padding follows them.
    output_positions: positions in the step of the tokens whose logits are needed: the last token of each chunk, then
        the other tokens of scored chunks.
    states: states of the step's rows.

    :param chunks: at most one for each row; chunks of a single token are first.
    """

    def __init__(self, cache: KVCache, chunks: Sequence[Chunk], device: torch.device, dtype: torch.dtype) -> None:
        self._cache = cache
        self.windows: set[int | None] = set()
        """Windows of all :meth:`attend` calls so far."""
        ends = [0]
        for chunk in chunks:
            ends.append(ends[-1] + len(chunk.ids))
        self._tokens = ends[-1]
        size = padded_size(self._tokens)
        padding = [0] * (size - self._tokens)
        ids = [id_ for chunk in chunks for id_ in chunk.ids]
        positions = [position for chunk in chunks for position in range(chunk.start, chunk.end)]
        self.ids, self.positions = (device_tensor(numbers + padding, device)[None] for numbers in (ids, positions))
        outputs = [end - 1 for end in ends[1:]]
        for chunk, end in zip(chunks, ends[1:], strict=True):
            if chunk.scored:
                outputs += range(end - len(chunk.ids), end - 1)
        self.output_positions = device_tensor(outputs, device)
        self.states = StepStates(cache.states, chunks, device)
        places = np.concatenate([cache.new_places(chunk.row, chunk.start, chunk.end) for chunk in chunks])
        new = np.flatnonzero(places >= 0)
        self._new: slice | torch.Tensor = slice(self._tokens)
        """Tokens whose keys and values are written to the cache."""
        if cache.kernel != "native" and len(new) < len(places):
            self._new, places = device_tensor(new, device), places[new]
        self._places = device_tensor(places, device)
        self._varlen = VarlenAttention(cache, chunks, device) if cache.kernel == "varlen" else None
        self._decoding = sum(len(chunk.ids) == 1 for chunk in chunks) if cache.kernel == "native" else 0
        self._rows = torch.tensor([chunk.row for chunk in chunks[: self._decoding]])
        self._new_grouped = functools.partial(GroupedAttention, cache, chunks, self._decoding, size, device, dtype)

    @functools.cached_property
    def _grouped(self) -> GroupedAttention:
        """Attention that the kernels do not compute. On CUDA, most models never need its tensors."""
        return self._new_grouped()

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float | None,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write the new keys and values to the KV cache, and attend.

        :param query: [heads, tokens, head size]
        :param key: and ``value``: [key-value heads, tokens, head size]
        :param window: maximum number of tokens that a token attends to, including itself; None for all.
        :param sinks: a logit for each head without a value, [heads]; None for none.
        :returns: [tokens, heads, head size]
        """
        self.windows.add(window)
        keys, values = self._cache.layers[layer]
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        results = []
        if self._cache.kernel == "native":
            function = decode_attention(query.shape[-1], query.shape[0] // key.shape[0], keys.dtype)
            location = keys, values, self._places, self._rows, self.positions, self._cache.tables
            result = function(query, key, value, *location, scale=scale, window=window, softcap=softcap, sinks=sinks)
            results.append(result)
        else:
            for cached, new in ((keys, key), (values, value)):
                cached.index_copy_(1, self._places, new[:, self._new])
        if self._varlen is not None and softcap is None:
            results.append(self._varlen.attend(query, keys, values, scale, window, sinks))
        else:
            results += self._grouped.attend(query, keys, values, scale, window, softcap, sinks)
        if padding := query.shape[1] - self._tokens:
            results.append(value.new_zeros(padding, query.shape[0], value.shape[-1]))
        return torch.cat(results) if len(results) > 1 else results[0].contiguous()
