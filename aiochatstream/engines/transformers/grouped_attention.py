"""Attention by torch's own operations, for chunks of prompts, and for devices without a kernel that reads block tables.

Neighbouring blocks are read in place, others are copied for each layer. For a chunk of a prompt the copy costs little
beside the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from aiochatstream.engines.transformers.chunk import TOKEN_MULTIPLE, Chunk, round_up
from aiochatstream.engines.transformers.device import device_tensor
from aiochatstream.engines.transformers.kv_cache import KVCache

CALL_COST = 512
"""Cost of an additional kernel call, in cached tokens that could be attended to in the same time."""

CPU_TILE, TILE = 128, 512
"""Maximum number of a chunk's tokens that attend in one call, on a CPU and on other devices. A tile attends only up to
its last token, and its results stay in the processor's cache or need little memory."""

SEEN_MULTIPLE = 128
"""Multiple to which the number of tokens is rounded up that matrix products of attention see, because oneDNN compiles
code for each new size."""

FEW_QUERIES = 16
"""Below this number of queries, oneDNN multiplies keys by queries faster than queries by keys."""

FEW_SCORES = 6144
"""Below this number of scores per head, torch's own attention is faster than matrix products."""


@dataclass(frozen=True, slots=True)
class _Queries:
    """Tokens that attend in one call: one token each of some rows, or some tokens of one row.

    tokens: positions in the step.
    used: tokens of the group whose results are used; the others are padding.
    ends: for each token, the number of tokens in its row that it may attend to, including itself.
    """

    tokens: slice | torch.Tensor
    used: slice
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Source:
    """Rows with the same cached tokens in one read, and the queries that attend to them."""

    rows: tuple[int, ...]
    queries: tuple[_Queries, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    """Arguments of the attention of some queries in layers of the same kind.

    seen: cached tokens among those that the source reads.
    mask: added to the scores: [1, rows, queries or 1, seen].
    multiply: True for matrix products, False for torch's own attention.
    """

    queries: _Queries
    seen: slice
    mask: torch.Tensor
    multiply: bool


@dataclass(frozen=True, slots=True)
class _Read:
    """A source in layers of the same kind: the places of its cached tokens, row by row, and the calls."""

    rows: int
    places: slice | torch.Tensor
    calls: tuple[_Call, ...]


class GroupedAttention:
    """Attention of the tokens of a step from token ``first`` on. The keys and values are already in the cache.

    :param chunks: all chunks of the step; those of a single token are first.
    :param first: number of single tokens at the beginning that attend elsewhere.
    :param size: number of tokens of the step, with padding.
    """

    def __init__(
        self,
        cache: KVCache,
        chunks: Sequence[Chunk],
        first: int,
        size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._cache, self._device, self._dtype = cache, device, dtype
        singles = [chunk for chunk in chunks[first:] if len(chunk.ids) == 1]
        self._sources = [*_group_singles(singles, first, device)]
        self._groups = len(self._sources)
        order = _by_length(singles)
        places = sorted(range(len(order)), key=order.__getitem__)
        self._places_of_singles = device_tensor(places, device)
        """Place of each single token among the results of all groups."""
        start = first + len(singles)
        tile = CPU_TILE if device.type == "cpu" else TILE
        for chunk in chunks[start:]:
            self._sources.append(_Source((chunk.row,), tuple(_tiles(chunk, start, tile, size))))
            start += len(chunk.ids)
        self._reads: dict[tuple[int | None, int, bool], list[_Read]] = {}

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """Return the results of the tokens in their order, each [tokens, heads, head size].

        :param query: [heads, tokens, head size], of the whole step.
        :param keys: and ``values``: of the layer in the cache, [key-value heads, tokens, head size].
        """
        kv_heads, heads = len(keys), len(query)
        results = []
        query = query.view(kv_heads, heads // kv_heads, *query.shape[1:])  # heads with the same keys are adjacent
        for read in self._reads_of(window, heads // kv_heads, plain=softcap is None and sinks is None):
            key, value = (
                _split_rows(self._cache.read(part, read.places, name), read.rows)
                for part, name in ((keys, "keys"), (values, "values"))
            )
            for call in read.calls:
                queries = query[:, :, call.queries.tokens]
                one_row = read.rows == 1
                queries = queries.flatten(1, 2)[:, None] if one_row else queries.transpose(1, 2)
                seen = key[:, :, call.seen], value[:, :, call.seen]
                if call.multiply:
                    result = self._multiply(queries, *seen, call.mask, scale, softcap, sinks)
                else:
                    result = scaled_dot_product_attention(queries, *seen, attn_mask=call.mask, scale=scale)
                if one_row:
                    result = result.reshape(kv_heads, heads // kv_heads, -1, result.shape[-1]).transpose(1, 2)
                results.append(result.transpose(0, 1)[call.queries.used].flatten(1, 2))
        if self._groups > 1 or len(self._places_of_singles) > 1:
            results[: self._groups] = [torch.cat(results[: self._groups]).index_select(0, self._places_of_singles)]
        return results

    def _reads_of(self, window: int | None, sharing: int, *, plain: bool) -> list[_Read]:
        """Return the reads of all sources, which are computed once for layers of the same kind."""
        kind = window, sharing, plain
        if kind not in self._reads:
            self._reads[kind] = [self._read(source, window, sharing, plain=plain) for source in self._sources]
        return self._reads[kind]

    def _read(self, source: _Source, window: int | None, sharing: int, *, plain: bool) -> _Read:
        ends = [end for queries in source.queries for end in queries.ends]
        first = 0 if window is None else max(0, min(ends) - window)
        first -= first % SEEN_MULTIPLE
        last = min(round_up(max(ends), SEEN_MULTIPLE), max(map(self._cache.row_length, source.rows)))
        calls = tuple(self._call(source, queries, first, last, window, sharing, plain) for queries in source.queries)
        return _Read(len(source.rows), self._places(source.rows, first, last), calls)

    def _places(self, rows: Sequence[int], first: int, last: int) -> slice | torch.Tensor:
        """Return the places of the tokens from ``first`` to ``last`` of all rows; a slice if they are neighbours."""
        places = np.concatenate([self._cache.places(row, first, last) for row in rows])
        if len(rows) == 1 and places[-1] - places[0] == last - first - 1 and bool((np.diff(places) == 1).all()):
            return slice(int(places[0]), int(places[-1]) + 1)
        return device_tensor(places, self._device)

    def _call(
        self, source: _Source, queries: _Queries, first: int, last: int, window: int | None, sharing: int, plain: bool
    ) -> _Call:
        longest, shortest = max(queries.ends), min(queries.ends)
        few = len(queries.ends) * sharing * longest < FEW_SCORES
        multiply = not plain or (self._device.type == "cpu" and not few)
        multiple = SEEN_MULTIPLE if multiply else 1
        start = 0 if window is None else max(0, shortest - window)
        start, stop = start - start % multiple, min(round_up(longest, multiple), last)
        positions = torch.arange(start, stop, device=self._device)
        ends = device_tensor(queries.ends, self._device)[:, None]
        hidden = positions >= ends
        if window is not None:
            hidden |= positions < ends - window
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, -torch.inf)
        mask = mask.repeat(sharing, 1)[None, None] if len(source.rows) == 1 else mask[None, :, None]
        return _Call(queries, slice(start - first, stop - first), mask, multiply)

    def _multiply(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        scale: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend by matrix products, which on a CPU are faster than torch's attention.

        Scores have the model's precision, as in "eager" attention; queries are scaled first, so that float16 does not
        overflow.

        :param query: [key-value heads, rows, queries, head size]
        :param key: and ``value``: [key-value heads, rows, seen, head size]
        :param sinks: [heads]
        """
        heads, rows, queries, _ = query.shape
        query = query.flatten(0, 1) * (scale if softcap is None else scale / softcap)
        key, value = key.flatten(0, 1), value.flatten(0, 1)
        seen = key.shape[1]
        weights = self._cache.workspace("weights", query, heads * rows, queries, seen + (sinks is not None))
        scores = weights[:, :, :seen]
        if queries < FEW_QUERIES:
            products = torch.bmm(key, query.transpose(1, 2)).transpose(1, 2)
        elif sinks is None:
            products = torch.bmm(query, key.transpose(1, 2), out=weights)
        else:
            products = torch.bmm(query, key.transpose(1, 2))
        if softcap is not None:
            products = products.tanh().mul_(softcap)
        torch.add(mask, products.view(heads, rows, queries, seen), out=scores.view(heads, rows, queries, seen))
        if sinks is not None:
            per_query = sinks.view(heads, -1, 1).expand(-1, -1, queries * heads // len(sinks)).reshape(heads, 1, -1)
            weights.view(heads, rows, queries, seen + 1)[..., seen] = per_query
        torch.softmax(weights, dim=-1, out=weights)
        return torch.bmm(scores, value).view(heads, rows, queries, -1)


def _split_rows(cached: torch.Tensor, rows: int) -> torch.Tensor:
    """Return [heads, rows * tokens, head size] as [heads, rows, tokens, head size]."""
    heads, tokens, size = cached.shape
    return cached.view(heads, rows, tokens // rows, size) if rows > 1 else cached[:, None]


def _by_length(chunks: Sequence[Chunk]) -> list[int]:
    """Return the indices of ``chunks``, the longest rows first."""
    return sorted(range(len(chunks)), key=lambda at: -chunks[at].end)


def _group_singles(singles: Sequence[Chunk], first: int, device: torch.device) -> Iterator[_Source]:
    """Group chunks of similar lengths, as long as what they see in vain costs less than another call.

    :param first: position of the first chunk in the step.
    """
    groups: list[list[int]] = []
    wasted = 0
    for at in _by_length(singles):
        if groups:
            wasted += singles[groups[-1][0]].end - singles[at].end
        if not groups or wasted > CALL_COST:
            groups.append([])
            wasted = 0
        groups[-1].append(at)
    for group in groups:
        chunks = [singles[at] for at in group]
        tokens = device_tensor([first + at for at in group], device)
        queries = _Queries(tokens, slice(len(group)), tuple(chunk.end for chunk in chunks))
        yield _Source(tuple(chunk.row for chunk in chunks), (queries,))


def _tiles(chunk: Chunk, start: int, tile: int, step_size: int) -> Iterator[_Queries]:
    """Split a chunk into groups of at most ``tile`` tokens.

    :param start: position of the chunk in the step.
    :param step_size: number of tokens in the step.
    """
    for at in range(0, len(chunk.ids), tile):
        count = min(tile, len(chunk.ids) - at)
        size = min(round_up(count, TOKEN_MULTIPLE), step_size)
        first = min(start + at, step_size - size)
        before = start + at - first
        ends = [chunk.end] * size
        ends[before : before + count] = range(chunk.start + at + 1, chunk.start + at + count + 1)
        yield _Queries(slice(first, first + size), slice(before, before + count), tuple(ends))
