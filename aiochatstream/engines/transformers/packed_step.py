"""The tokens of one forward pass, packed into a batch of one, and their attention.

The tokens of all rows follow one another, so that the model's linear layers compute no padding except what rounds up
the step's size. Each token attends to the keys and values of its own row in the KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from aiochatstream.engines.transformers.cpu.native import decode_attention
from aiochatstream.engines.transformers.device import device_tensor
from aiochatstream.engines.transformers.kv_cache import KVCache
from aiochatstream.engines.transformers.state_cache import StepStates

CALL_COST = 512
"""Cost of an additional kernel call, in cached tokens that could be attended to in the same time."""

CPU_TILE, TILE = 128, 512
"""Maximum number of a chunk's tokens that attend in one call, on a CPU and on other devices. A tile attends only up to
its last token, and its results stay in the processor's cache or need little memory."""

TOKEN_MULTIPLE, SEEN_MULTIPLE = 16, 128
"""Sizes are rounded up to these: the tokens of larger steps, and on a CPU the tokens that matrix products of attention
see. oneDNN compiles code for each new size, which takes longer than the padding, and caches the last thousand sizes."""

FEW_QUERIES = 16
"""Below this number of queries, oneDNN multiplies keys by queries faster than queries by keys."""

FEW_SCORES = 6144
"""Below this number of scores per head, torch's own attention is faster than matrix products."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one row, from position ``start`` on.

    scored: True if the logits of all tokens are needed, not only the last token's.
    """

    row: int
    start: int
    ids: list[int]
    scored: bool = False

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


@dataclass(frozen=True, slots=True)
class _QueryGroup:
    """Tokens that attend in one call: one token each of neighbouring rows, or some tokens of one row.

    tokens: positions in the step.
    used: tokens of the group whose results are used; the others are padding.
    ends: for each token, the number of tokens in its row that it may attend to, including itself.
    """

    rows: slice
    tokens: slice
    used: slice
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _AttentionCall:
    """Arguments of a group's attention in layers with the same window.

    seen: positions in the rows that the group attends to.
    mask: added to the scores: [rows, 1, queries, seen].
    multiply: True for matrix products, False for torch's own attention.
    single_row: whether all tokens are of one row.
    """

    rows: slice
    tokens: slice
    used: slice
    seen: slice
    mask: torch.Tensor
    multiply: bool
    single_row: bool


class PackedStep:
    """Inputs of one forward pass as tensors, and the attention of its tokens.

    ids, positions: [1, tokens], of all tokens; padding follows them.
    output_positions: positions in the step of the tokens whose logits are needed: the last token of each chunk, then
        the other tokens of scored chunks.
    states: states of the step's rows.

    :param chunks: at most one for each row; chunks of a single token are first, in the order of their rows.
    """

    def __init__(self, cache: KVCache, chunks: Sequence[Chunk], device: torch.device, dtype: torch.dtype) -> None:
        self._cache, self._device, self._dtype = cache, device, dtype
        singles = [chunk for chunk in chunks if len(chunk.ids) == 1]
        ends = [0]
        for chunk in chunks:
            ends.append(ends[-1] + len(chunk.ids))
        size = padded_size(ends[-1])
        padding = [0] * (size - ends[-1])
        ids = [id_ for chunk in chunks for id_ in chunk.ids]
        positions = [position for chunk in chunks for position in range(chunk.start, chunk.end)]
        self.ids, self.positions = (device_tensor(numbers + padding, device)[None] for numbers in (ids, positions))
        outputs = [end - 1 for end in ends[1:]]
        for chunk, end in zip(chunks, ends[1:], strict=True):
            if chunk.scored:
                outputs += range(end - len(chunk.ids), end - 1)
        self.output_positions = device_tensor(outputs, device)
        self._rows = device_tensor([chunk.row for chunk in chunks for _ in chunk.ids], device)
        self._decoding = len(singles)
        self._groups = [] if cache.native else _group_singles(singles)
        tile = CPU_TILE if device.type == "cpu" else TILE
        for chunk, start in zip(chunks[len(singles) :], ends[len(singles) :], strict=False):
            self._groups += _tiles(chunk, start, tile, size)
        self.states = StepStates(cache.states, chunks, device)
        self._calls: dict[Any, list[_AttentionCall]] = {}
        self._write_places: dict[int, torch.Tensor] = {}

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
        :param sinks: [heads], a score of each head that takes a share of the attention without a value.
        :returns: [tokens, heads, head size]
        """
        keys, values = self._cache.layers[layer]
        kv_heads = key.shape[0]
        sharing = query.shape[0] // kv_heads  # query heads per key-value head
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        results = []
        if self._cache.native:
            function = decode_attention(query.shape[-1], sharing, keys.dtype)
            location: Any = keys, values, self._rows, self.positions, self._decoding
            if sinks is not None:
                raise NotImplementedError("attention sinks in C++")
            result = function(query, key, value, *location, scale=scale, window=window, softcap=softcap)
            results.append(result.view(-1, kv_heads, sharing, result.shape[-1]))
        else:
            self._write(keys, key)
            self._write(values, value)
        query = query.view(kv_heads, sharing, *query.shape[1:])  # heads that share keys and values are adjacent
        if sinks is not None:
            sinks = sinks.view(kv_heads, sharing, 1)
        for call in self._attention_calls(window, sharing, multiply=softcap is not None or sinks is not None):
            queries = query[:, :, call.tokens]
            queries = queries.flatten(1, 2)[None] if call.single_row else queries.permute(2, 0, 1, 3)
            cached = keys[call.rows, :, call.seen], values[call.rows, :, call.seen]
            if call.multiply:
                result = self._multiply(queries, *cached, call.mask, scale, softcap, sinks)
            else:
                result = scaled_dot_product_attention(queries, *cached, attn_mask=call.mask, scale=scale)
            if call.single_row:
                result = result.view(kv_heads, sharing, -1, result.shape[-1]).permute(2, 0, 1, 3)[call.used]
            results.append(result)
        if padding := query.shape[2] - len(self._rows):
            results.append(value.new_zeros(padding, kv_heads, sharing, value.shape[-1]))
        joined = torch.cat(results) if len(results) > 1 else results[0]
        return joined.contiguous().flatten(1, 2)

    def _write(self, cached: torch.Tensor, new: torch.Tensor) -> None:
        """Write the keys, or the values, of the new tokens to the KV cache."""
        heads, _, size = new.shape
        if heads not in self._write_places:
            rows = self._rows * heads + torch.arange(heads, device=self._device)[:, None]
            self._write_places[heads] = (rows * self._cache.length + self.positions[0, : len(self._rows)]).flatten()
        cached.view(-1, size).index_copy_(0, self._write_places[heads], new[:, : len(self._rows)].reshape(-1, size))

    @property
    def windows(self) -> set[int | None]:
        """Windows of all :meth:`attend` calls so far."""
        return {window for window, *_ in self._calls}

    def _attention_calls(self, window: int | None, sharing: int, *, multiply: bool) -> list[_AttentionCall]:
        """Return the calls of all groups, which are computed once for layers of the same kind.

        :param multiply: whether torch's own attention cannot compute the layer.
        """
        kind = window, sharing, multiply
        if kind not in self._calls:
            self._calls[kind] = [
                self._attention_call(group, window, sharing, multiply=multiply) for group in self._groups
            ]
        return self._calls[kind]

    def _attention_call(
        self, group: _QueryGroup, window: int | None, sharing: int, *, multiply: bool
    ) -> _AttentionCall:
        longest, shortest = max(group.ends), min(group.ends)
        few = len(group.ends) * sharing * longest < FEW_SCORES
        multiply = multiply or (self._device.type == "cpu" and not few)
        multiple = SEEN_MULTIPLE if multiply else 1
        first = 0 if window is None else max(0, shortest - window)
        seen = slice(first - first % multiple, min(round_up(longest, multiple), self._cache.length))
        positions = torch.arange(seen.start, seen.stop, device=self._device)
        ends = device_tensor(group.ends, self._device)[:, None]
        hidden = positions >= ends
        if window is not None:
            hidden |= positions < ends - window
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, -torch.inf)
        single_row = group.rows.stop - group.rows.start == 1
        mask = mask.repeat(sharing, 1)[None, None] if single_row else mask[:, None, None]
        return _AttentionCall(group.rows, group.tokens, group.used, seen, mask, multiply, single_row)

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

        :param query: [rows, heads, queries, head size]
        :param key: and ``value``: [rows, heads, seen, head size]
        :param sinks: [heads, query heads per key-value head, 1]
        """
        rows, heads, queries, _ = query.shape
        query = query.flatten(0, 1) * (scale if softcap is None else scale / softcap)
        key, value = key.flatten(0, 1), value.flatten(0, 1)
        all_weights = self._cache.workspace(rows * heads, queries, key.shape[1] + (sinks is not None))
        weights = all_weights[..., : key.shape[1]]
        if queries < FEW_QUERIES:
            products = torch.bmm(key, query.transpose(1, 2)).transpose(1, 2)
        else:
            products = torch.bmm(query, key.transpose(1, 2), out=weights)
        if softcap is not None:
            products = products.tanh().mul_(softcap)
        scores = all_weights.view(rows, heads, queries, -1)
        torch.add(mask, products.view(rows, heads, queries, -1), out=scores[..., : key.shape[1]])
        if sinks is not None:
            scores[..., -1] = sinks.expand(-1, -1, queries // sinks.shape[1]).flatten(1)
        torch.softmax(all_weights, dim=-1, out=all_weights)
        return torch.bmm(weights, value).view(rows, heads, queries, -1)


def _group_singles(singles: Sequence[Chunk]) -> list[_QueryGroup]:
    """Group neighbouring rows, except if their lengths differ so much that another call costs less."""
    cuts = [0]
    longest = total = 0
    for at, chunk in enumerate(singles):
        longest, total = max(longest, chunk.end), total + chunk.end
        wasted = longest * (at + 1 - cuts[-1]) - total
        if at and (wasted > CALL_COST or chunk.row != singles[at - 1].row + 1):
            cuts.append(at)
            longest = total = chunk.end
    return [
        _QueryGroup(
            slice(singles[start].row, singles[start].row + end - start),
            slice(start, end),
            slice(end - start),
            tuple(chunk.end for chunk in singles[start:end]),
        )
        for start, end in pairwise([*cuts, len(singles)])
        if end > start
    ]


def _tiles(chunk: Chunk, start: int, tile: int, step_size: int) -> list[_QueryGroup]:
    """Split a chunk into groups of at most ``tile`` tokens.

    :param start: position of the chunk in the step.
    :param step_size: number of tokens in the step.
    """
    row = slice(chunk.row, chunk.row + 1)
    groups = []
    for at in range(0, len(chunk.ids), tile):
        count = min(tile, len(chunk.ids) - at)
        size = min(round_up(count, TOKEN_MULTIPLE), step_size)
        first = min(start + at, step_size - size)
        before = start + at - first
        ends = [chunk.end] * size
        ends[before : before + count] = range(chunk.start + at + 1, chunk.start + at + count + 1)
        groups.append(_QueryGroup(row, slice(first, first + size), slice(before, before + count), tuple(ends)))
    return groups


def padded_size(tokens: int) -> int:
    """Return the number of tokens, including padding, that a step with ``tokens`` tokens computes."""
    return tokens if tokens <= TOKEN_MULTIPLE else round_up(tokens, TOKEN_MULTIPLE)


def round_up(number: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-number // multiple) * multiple
