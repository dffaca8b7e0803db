"""Attention of a packed step: each row's new tokens over that row's own keys and values.

A step's tokens stand one after another in a batch of one, whatever row they belong to, so that the model's linear
layers see no padding. Registered with transformers as an attention function, which is told the step by a keyword
argument of ``model(...)`` and finds each row's keys and values in the slot cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "aiochatstream"

CALL_COST = 256
"""Cached tokens that can be attended in the time that one more call of the attention kernel takes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New tokens of one row, which stand at ``start`` and after it."""

    row: int
    start: int
    ids: list[int]

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


class SlotCache:
    """Keys and values of all rows, written in place: for each layer two tensors [rows, heads, length, head size]."""

    def __init__(self, like: Sequence[tuple[torch.Tensor, torch.Tensor]], rows: int, length: int) -> None:
        """:param like: keys and values of each layer, [1, heads, any, head size], for their shapes and dtypes."""
        self.layers = [
            tuple(one.new_zeros(rows, one.shape[1], length, one.shape[3]) for one in layer) for layer in like
        ]
        self.length = length
        self.token_bytes = self.size // (rows * length)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(one.nbytes for layer in self.layers for one in layer)

    def take(self, row: int, length: int) -> list[tuple[torch.Tensor, ...]]:
        """A copy of a row's first ``length`` tokens."""
        return [tuple(one[row, :, :length].clone() for one in layer) for layer in self.layers]

    def clear(self, row: int) -> None:
        """Forget all of a row."""
        for layer in self.layers:
            for one in layer:
                one[row].zero_()

    def put(self, row: int, tokens: Sequence[tuple[torch.Tensor, ...]], length: int) -> None:
        """Write the first ``length`` of copied tokens into a row."""
        for layer, copied in zip(self.layers, tokens, strict=True):
            for one, source in zip(layer, copied, strict=True):
                one[row, :, :length] = source[:, :length]


class Step:
    """What one forward pass reads, as tensors.

    :param pieces: of each row at most one; those of a single token come first, in the order of their rows.
    """

    def __init__(self, cache: SlotCache, pieces: Sequence[Piece], device: torch.device, dtype: torch.dtype) -> None:
        self._cache, self._device, self._dtype = cache, device, dtype
        self._single = [piece for piece in pieces if len(piece.ids) == 1]
        self._long = [piece for piece in pieces if len(piece.ids) > 1]
        self.ids = self._tensor([id_ for piece in pieces for id_ in piece.ids])[None]
        self.positions = self._tensor([at for piece in pieces for at in range(piece.start, piece.end)])[None]
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + len(piece.ids))
        self.last = self._tensor([end - 1 for end in ends[1:]])
        """Where each piece's last token stands."""
        rows = [piece.row for piece in self._single]
        self._rows = self._tensor(rows)
        self._upto = max(rows, default=-1) + 1
        self._dense = rows == list(range(self._upto))
        self._longest = max((piece.end for piece in self._single), default=0)
        alone = sum(piece.end + CALL_COST for piece in self._single)
        self._together = alone > self._upto * self._longest + CALL_COST
        self._masks: dict[Any, torch.Tensor] = {}

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
        tokens, groups = query.shape[1], key.shape[0]
        query = query.view(groups, -1, *query.shape[1:])
        single = len(self._single)
        answer = value.new_empty(tokens, groups, query.shape[1], value.shape[-1])
        if single:
            at = self.positions[0, :single]
            keys[self._rows, :, at] = key[:, :single].transpose(0, 1)
            values[self._rows, :, at] = value[:, :single].transpose(0, 1)
        if single and self._together:
            asked = query[:, :, :single].permute(2, 0, 1, 3)
            if not self._dense:
                asked = asked.new_zeros(self._upto, *asked.shape[1:]).index_copy_(0, self._rows, asked)
            part = keys[: self._upto, :, : self._longest], values[: self._upto, :, : self._longest]
            attended = _attend(asked, *part, self._mask_of_singles(window), scale, softcap)
            answer[:single] = attended if self._dense else attended[self._rows]
        else:
            for at_, piece in enumerate(self._single):
                first = 0 if window is None else max(0, piece.end - window)
                asked = query[None, :, :, at_]
                part = keys[piece.row, None, :, first : piece.end], values[piece.row, None, :, first : piece.end]
                answer[at_] = _attend(asked, *part, None, scale, softcap)[0]
        begin = single
        for piece in self._long:
            end = begin + len(piece.ids)
            keys[piece.row, :, piece.start : piece.end] = key[:, begin:end]
            values[piece.row, :, piece.start : piece.end] = value[:, begin:end]
            asked = query[None, :, :, begin:end].flatten(2, 3)
            part = keys[piece.row, None, :, : piece.end], values[piece.row, None, :, : piece.end]
            mask = self._mask_of_piece(piece, window, query.shape[1])
            attended = _attend(asked, *part, mask, scale, softcap)[0].view(groups, -1, end - begin, value.shape[-1])
            answer[begin:end] = attended.permute(2, 0, 1, 3)
            begin = end
        return answer.flatten(1, 2)

    def _mask_of_singles(self, window: int | None) -> torch.Tensor:
        """[rows, 1, 1, longest], to be added. Rows without a token see the first one, which nobody reads."""
        if ("single", window) not in self._masks:
            last = (
                self._tensor([0])
                .expand(self._upto)
                .clone()
                .index_copy_(0, self._rows, self.positions[0, : len(self._single)])
            )
            places = torch.arange(self._longest, device=self._device)
            seen = places <= last[:, None]
            if window is not None:
                seen &= places > last[:, None] - window
            self._masks["single", window] = self._additive(seen)[:, None, None]
        return self._masks["single", window]

    def _mask_of_piece(self, piece: Piece, window: int | None, times: int) -> torch.Tensor:
        """[times x tokens of the piece, all tokens of its row], to be added."""
        if (piece.row, window, times) not in self._masks:
            places = torch.arange(piece.end, device=self._device)
            own = places[piece.start :, None]
            seen = places <= own
            if window is not None:
                seen &= places > own - window
            self._masks[piece.row, window, times] = self._additive(seen).repeat(times, 1)
        return self._masks[piece.row, window, times]

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        return torch.zeros(seen.shape, dtype=self._dtype, device=self._device).masked_fill_(~seen, -torch.inf)

    def _tensor(self, numbers: list[int]) -> torch.Tensor:
        made = torch.tensor(numbers, dtype=torch.long, pin_memory=self._device.type == "cuda")
        return made.to(self._device, non_blocking=True)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attention where all heads that share keys and values stand together as queries, so that nothing is repeated."""
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


def _function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    step: Step | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' attention modules call. Without a step, someone else uses the model: its usual attention."""
    if step is None:
        others |= {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap}
        usual: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **others)
        return usual
    if others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases")
    layer: Any = module.layer_idx
    options: dict[str, Any] = {"scale": scaling, "window": sliding_window, "softcap": softcap}
    return step.attend(layer, query[0], key[0], value[0], **options)[None], None


AttentionInterface.register(NAME, _function)
AttentionMaskInterface.register(NAME, sdpa_mask)
