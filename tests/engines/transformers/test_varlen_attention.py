"""Tests of the attention by torch's function for CUDA, with a plain function of the same semantics in its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.attention.varlen import AuxRequest

from aiochatstream.engines.transformers import kv_cache, packed_step, varlen_attention
from aiochatstream.engines.transformers.grouped_attention import GroupedAttention
from aiochatstream.engines.transformers.packed_step import PackedStep
from tests.engines.transformers.test_packed_step import (
    ALL_ROWS,
    CPU,
    DOUBLE,
    KV_HEADS,
    LAYERS,
    LENGTH,
    ROWS,
    SHARING,
    SINKS,
    cache_of,
    chunks_of,
)

HEADS = KV_HEADS * SHARING


class PlainVarlenAttention:
    """Function with the arguments of torch's, for any device, dtype and block size.

    calls: number of calls.
    """

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        return_aux: AuxRequest,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
        seqused_k: torch.Tensor,
        block_table: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the results [tokens, heads, head size] and, as torch's kernels, the sums [heads, tokens]."""
        self.calls += 1
        rows = len(seqused_k)
        assert enable_gqa
        assert return_aux.lse
        assert window_size[1] == 0, "not causal"
        assert all(part.dtype == torch.int32 for part in (cu_seq_q, cu_seq_k, seqused_k, block_table))
        assert len(cu_seq_q) == len(cu_seq_k) == rows + 1 == len(block_table) + 1
        assert cu_seq_q[-1] == len(query)
        assert cu_seq_k.diff().tolist() == seqused_k.tolist()
        assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(seqused_k.max()))
        assert all(part.stride(3) == 1 for part in (query[None], key, value)), "not contiguous in the last dimension"
        result, sums = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
        for row in range(rows):
            seen = int(seqused_k[row])
            keys, values = (part[block_table[row].long()].flatten(0, 1)[:seen] for part in (key, value))
            for token in range(int(cu_seq_q[row]), int(cu_seq_q[row + 1])):
                last = seen - (int(cu_seq_q[row + 1]) - token)  # the last token sees all
                first = 0 if window_size[0] < 0 else max(0, last - window_size[0])
                for head in range(query.shape[1]):
                    at = head * key.shape[2] // query.shape[1]
                    scores = keys[first : last + 1, at] @ query[token, head] * scale
                    result[token, head] = scores.softmax(0) @ values[first : last + 1, at]
                    sums[head, token] = scores.logsumexp(0)
        return result, sums


@pytest.fixture(scope="module")
def plain_attention() -> Iterator[PlainVarlenAttention]:
    """The function in place of torch's."""
    function = PlainVarlenAttention()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen_attention, "_varlen_function", lambda: (function, AuxRequest))
        yield function


token_counts = st.dictionaries(st.integers(0, ROWS - 1), st.integers(1, 5), min_size=1)


@settings(max_examples=20, deadline=None)
@given(
    schedule=st.lists(token_counts, min_size=1, max_size=4),
    window=st.sampled_from([None, 1, 3, LENGTH]),
    softcap=st.sampled_from([None, None, 2.0]),
    scale=st.sampled_from([None, 0.3]),
    sinks=st.sampled_from([None, SINKS]),
    order=st.integers(0, 9),
)
@example([dict.fromkeys(range(ROWS), 5), {0: 1, 1: 1, 2: 4}], 3, None, None, SINKS, 1)  # as many tokens as heads
@example([dict.fromkeys(range(ROWS), 5), dict.fromkeys(range(ROWS), 1)], None, None, None, None, 2)
def test_each_row_attends_only_to_its_own_tokens(
    plain_attention: PlainVarlenAttention,
    schedule: list[dict[int, int]],
    window: int | None,
    softcap: float | None,
    scale: float | None,
    sinks: torch.Tensor | None,
    order: int,
) -> None:
    cache = cache_of(order=order, kernel="varlen")
    plain_attention.calls = 0
    lengths = dict.fromkeys(range(ROWS), 0)
    for counts in schedule:
        chunks = chunks_of(lengths, counts)
        step = PackedStep(cache, chunks, CPU, DOUBLE)
        for layer in range(LAYERS):
            packed = ALL_ROWS.packed(layer, chunks, step.ids.shape[1])
            options: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap, "sinks": sinks}
            actual = step.attend(layer, *packed, **options)
            assert actual.shape[:2] == (step.ids.shape[1], HEADS)
            expected = torch.cat([ALL_ROWS.expected(layer, chunk, window, softcap, scale, sinks) for chunk in chunks])
            assert torch.allclose(actual[: len(expected)], expected, atol=1e-5)
            assert not actual[len(expected) :].any(), "the padding is not zero"
        lengths |= {chunk.row: chunk.end for chunk in chunks}
    assert plain_attention.calls == (0 if softcap else LAYERS * len(schedule)), "one call for all rows"


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_other_attention_is_prepared_only_for_layers_that_the_function_does_not_compute(
    plain_attention: PlainVarlenAttention, monkeypatch: pytest.MonkeyPatch, softcap: float | None
) -> None:
    prepared: list[GroupedAttention] = []

    def prepare(*arguments: Any) -> GroupedAttention:
        prepared.append(GroupedAttention(*arguments))
        return prepared[-1]

    monkeypatch.setattr(packed_step, "GroupedAttention", prepare)
    chunks = chunks_of(dict.fromkeys(range(ROWS), 0), dict.fromkeys(range(ROWS), 5))
    step = PackedStep(cache_of(kernel="varlen"), chunks, CPU, DOUBLE)
    for layer in range(LAYERS):
        step.attend(layer, *ALL_ROWS.packed(layer, chunks, step.ids.shape[1]), scale=None, window=None, softcap=softcap)
    assert len(prepared) == (0 if softcap is None else 1)


def test_the_blocks_are_those_of_flash_attention() -> None:
    assert kv_cache.block_size_of("varlen") % 256 == 0


def test_the_function_is_available_with_block_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert varlen_attention.is_available()
    monkeypatch.setattr(varlen_attention, "_varlen_function", lambda: (lambda query, key: None, AuxRequest))
    assert not varlen_attention.is_available()
