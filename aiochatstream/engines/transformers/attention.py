"""Attention of a packed step: each row's new tokens over that row's own keys and values.

A step's tokens stand one after another in a batch of one, whatever row they belong to, so that the model's linear
layers see no padding but what makes the step's size a usual one. Registered with transformers as an attention function,
which ``model(..., packed=True)`` asks for; it finds each row's keys and values in the slot cache of the thread's step.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from aiochatstream.engines.transformers.cpu.native import decode_attention
from aiochatstream.engines.transformers.custom_ops import register
from aiochatstream.engines.transformers.device import tensor
from aiochatstream.engines.transformers.kv_cache import SlotCache

NAME = "aiochatstream"

CALL_COST = 512
"""Cached tokens that can be attended in the time that one more call of the kernels takes."""

TILE, WIDE_TILE = 128, 512
"""New tokens of a piece that attend together, on a CPU and elsewhere: none looks further ahead than the last of them,
and what they compute stays in the processor's cache, or takes little memory."""

ROUND_TOKENS, ROUND_SEEN = 16, 128
"""Steps of more tokens than the first have a multiple of it, and on a CPU, matrix products of attention see a multiple
of the second: oneDNN makes code for each new size, which takes longer than what is computed for nothing, and keeps that
of the last thousand."""

FEW_QUERIES = 16
"""With fewer, oneDNN multiplies keys by queries more quickly than queries by keys."""

FEW_SCORES = 6144
"""Of a head: with fewer, torch's own attention is quicker than matrix products."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New tokens of one row, which stand at ``start`` and after it.

    scored: the logits of all of its tokens are wanted, not only those of the last one.
    """

    row: int
    start: int
    ids: list[int]
    scored: bool = False

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


@dataclass(frozen=True, slots=True)
class _Part:
    """What attends in one call: neighbouring rows with a token each, or some tokens of one row.

    ``tokens`` are places in the step, ``ends`` how many tokens each of them sees at most, itself included. Those
    ``kept`` count, the others only make the size a usual one.
    """

    rows: slice
    tokens: slice
    kept: slice
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    """How a part attends: its tokens, to what is ``seen`` of its rows."""

    rows: slice
    tokens: slice
    kept: slice
    seen: slice
    mask: torch.Tensor
    """To be added to the scores: [rows, 1, queries, seen]."""
    multiply: bool
    alone: bool


class Step:
    """What one forward pass reads, as tensors.

    :param pieces: of each row at most one; those of a single token come first, in the order of their rows.
    """

    def __init__(self, cache: SlotCache, pieces: Sequence[Piece], device: torch.device, dtype: torch.dtype) -> None:
        self._cache, self._device, self._dtype = cache, device, dtype
        singles = [piece for piece in pieces if len(piece.ids) == 1]
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + len(piece.ids))
        size = filled_up(ends[-1])
        nothing = [0] * (size - ends[-1])
        ids = [id_ for piece in pieces for id_ in piece.ids]
        places = [place for piece in pieces for place in range(piece.start, piece.end)]
        self.ids, self.positions = (tensor(numbers + nothing, device)[None] for numbers in (ids, places))
        last = [end - 1 for end in ends[1:]]
        for piece, end in zip(pieces, ends[1:], strict=True):
            if piece.scored:
                last += range(end - len(piece.ids), end - 1)
        self.last = tensor(last, device)
        """The places of the tokens whose logits are wanted: each piece's last one, then the others of scored pieces."""
        self._rows = tensor([piece.row for piece in pieces for _ in piece.ids], device)
        self._decoding = len(singles)
        self._parts = [] if cache.native else _neighbours(singles)
        tile = TILE if device.type == "cpu" else WIDE_TILE
        for piece, begin in zip(pieces[len(singles) :], ends[len(singles) :], strict=False):
            self._parts += _tiles(piece, begin, tile, size)
        self._known_calls: dict[Any, list[_Call]] = {}
        self._places: dict[int, torch.Tensor] = {}

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
    ) -> torch.Tensor:
        """Write the new keys and values, and attend.

        :param query: [heads, tokens, head size]
        :param key: and ``value``: [key-value heads, tokens, head size]
        :param window: each token sees so many, itself included; None is all.
        :returns: [tokens, heads, head size]
        """
        keys, values = self._cache.layers[layer]
        groups = key.shape[0]
        each = query.shape[0] // groups
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        answers = []
        if self._cache.native:
            function = decode_attention(query.shape[-1], each, keys.dtype)
            where: Any = keys, values, self._rows, self.positions, self._decoding
            attended = function(query, key, value, *where, scale=scale, window=window, softcap=softcap)
            answers.append(attended.view(-1, groups, each, attended.shape[-1]))
        else:
            self._write(keys, key)
            self._write(values, value)
        query = query.view(groups, each, *query.shape[1:])  # heads that share keys and values stand together
        for call in self._calls(window, each, capped=softcap is not None):
            asked = query[:, :, call.tokens]
            asked = asked.flatten(1, 2)[None] if call.alone else asked.permute(2, 0, 1, 3)
            cached = keys[call.rows, :, call.seen], values[call.rows, :, call.seen]
            if call.multiply:
                attended = self._multiply(asked, *cached, call.mask, scale, softcap)
            else:
                attended = scaled_dot_product_attention(asked, *cached, attn_mask=call.mask, scale=scale)
            if call.alone:
                attended = attended.view(groups, each, -1, attended.shape[-1]).permute(2, 0, 1, 3)[call.kept]
            answers.append(attended)
        if left := query.shape[2] - len(self._rows):
            answers.append(value.new_zeros(left, groups, each, value.shape[-1]))
        together = torch.cat(answers) if len(answers) > 1 else answers[0]
        return together.contiguous().flatten(1, 2)

    def _write(self, cached: torch.Tensor, new: torch.Tensor) -> None:
        """Put the keys, or values, of the new tokens where they belong."""
        groups, _, size = new.shape
        if groups not in self._places:
            rows = self._rows * groups + torch.arange(groups, device=self._device)[:, None]
            self._places[groups] = (rows * self._cache.length + self.positions[0, : len(self._rows)]).flatten()
        cached.view(-1, size).index_copy_(0, self._places[groups], new[:, : len(self._rows)].reshape(-1, size))

    @property
    def windows(self) -> set[int | None]:
        """All that :meth:`attend` was told."""
        return {window for window, *_ in self._known_calls}

    def _calls(self, window: int | None, each: int, *, capped: bool) -> list[_Call]:
        """How the parts attend in a layer. The same for all layers that are alike."""
        known = window, each, capped
        if known not in self._known_calls:
            self._known_calls[known] = [self._call(part, window, each, capped=capped) for part in self._parts]
        return self._known_calls[known]

    def _call(self, part: _Part, window: int | None, each: int, *, capped: bool) -> _Call:
        longest, shortest = max(part.ends), min(part.ends)
        few = len(part.ends) * each * longest < FEW_SCORES
        multiply = capped or (self._device.type == "cpu" and not few)
        multiple = ROUND_SEEN if multiply else 1
        first = 0 if window is None else max(0, shortest - window)
        seen = slice(first - first % multiple, min(rounded(longest, multiple), self._cache.length))
        places = torch.arange(seen.start, seen.stop, device=self._device)
        ends = tensor(part.ends, self._device)[:, None]
        hidden = places >= ends
        if window is not None:
            hidden |= places < ends - window
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, -torch.inf)
        alone = part.rows.stop - part.rows.start == 1
        mask = mask.repeat(each, 1)[None, None] if alone else mask[:, None, None]
        return _Call(part.rows, part.tokens, part.kept, seen, mask, multiply, alone)

    def _multiply(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        scale: float,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention of queries [rows, heads, queries, head size] to keys and values [rows, heads, seen, head size].

        By matrix products, which on a CPU take less time than torch's own. Scores have the model's precision, as in
        "eager" attention; queries are scaled first, so that float16 can hold them.
        """
        rows, heads, queries, _ = query.shape
        query = query.flatten(0, 1) * (scale if softcap is None else scale / softcap)
        key, value = key.flatten(0, 1), value.flatten(0, 1)
        weights = self._cache.space(rows * heads, queries, key.shape[1])
        if queries < FEW_QUERIES:
            products = torch.bmm(key, query.transpose(1, 2)).transpose(1, 2)
        else:
            products = torch.bmm(query, key.transpose(1, 2), out=weights)
        if softcap is not None:
            products = products.tanh().mul_(softcap)
        scores = weights.view(rows, heads, queries, -1)
        torch.add(mask, products.view(scores.shape), out=scores)
        torch.softmax(weights, dim=-1, out=weights)
        return torch.bmm(weights, value).view(rows, heads, queries, -1)


def _neighbours(singles: Sequence[Piece]) -> list[_Part]:
    """Rows that stand together in the cache, cut where lengths differ so much that another call costs less."""
    cuts = [0]
    longest = total = 0
    for at, piece in enumerate(singles):
        longest, total = max(longest, piece.end), total + piece.end
        wasted = longest * (at + 1 - cuts[-1]) - total
        if at and (wasted > CALL_COST or piece.row != singles[at - 1].row + 1):
            cuts.append(at)
            longest = total = piece.end
    return [
        _Part(
            slice(singles[begin].row, singles[begin].row + end - begin),
            slice(begin, end),
            slice(end - begin),
            tuple(piece.end for piece in singles[begin:end]),
        )
        for begin, end in pairwise([*cuts, len(singles)])
        if end > begin
    ]


def _tiles(piece: Piece, begin: int, size: int, step_size: int) -> list[_Part]:
    """The tokens of a piece, so many at a time. They stand at ``begin`` of the step, which has so many in all."""
    row = slice(piece.row, piece.row + 1)
    parts = []
    for at in range(0, len(piece.ids), size):
        count = min(size, len(piece.ids) - at)
        usual = min(rounded(count, ROUND_TOKENS), step_size)
        first = min(begin + at, step_size - usual)
        before = begin + at - first
        ends = [piece.end] * usual
        ends[before : before + count] = range(piece.start + at + 1, piece.start + at + count + 1)
        parts.append(_Part(row, slice(first, first + usual), slice(before, before + count), tuple(ends)))
    return parts


def filled_up(tokens: int) -> int:
    """How many tokens a step computes that has so many."""
    return tokens if tokens <= ROUND_TOKENS else rounded(tokens, ROUND_TOKENS)


def rounded(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


class _Thread(threading.local):
    step: Step | None = None


_thread = _Thread()


@contextmanager
def attending(step: Step) -> Iterator[None]:
    """In this thread, ``model(..., packed=True)`` computes ``step``."""
    _thread.step = step
    try:
        yield
    finally:
        _thread.step = None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: int,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """:meth:`Step.attend` of the thread's step, with a batch of one."""
    step = _thread.step
    if step is None:
        raise RuntimeError("There is no step to compute in this thread.")
    return step.attend(layer, query[0], key[0], value[0], scale=scale, window=window, softcap=softcap)[None]


def _attend_shape(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *options: Any) -> torch.Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


register(
    "attend(Tensor query, Tensor key, Tensor value, int layer, float? scale, int? window, float? softcap) -> Tensor",
    _attend,
    _attend_shape,
)


def _function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: bool = False,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' attention modules call. If not packed, someone else uses the model: its usual attention."""
    if not packed:
        others |= {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap}
        usual: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **others)
        return usual
    if sliding_window is None:  # some models only put it into the mask, which is not used here
        sliding_window = getattr(module, "sliding_window", None)
    if others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases")
    layer: Any = module.layer_idx
    operation: Any = torch.ops.aiochatstream.attend
    return operation(query, key, value, layer, scaling, sliding_window, softcap), None


AttentionInterface.register(NAME, _function)
AttentionMaskInterface.register(NAME, sdpa_mask)
