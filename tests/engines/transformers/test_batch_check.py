"""Tests of the check that a model computes packed rows as separate sequences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.engines.transformers.packed_step import PackedStep
from tests.engines.transformers.engine_harness import answer, concurrent_answers, load_engine
from tests.engines.transformers.tiny_models import BYTES, SEQUENTIAL, assert_same, reference, some_ids, tiny

REASONS = {
    "BLOOM, with slopes for positions": "its attention cannot be replaced",
    "Llama 4, with chunks": "its attention is chunked in contexts above 64 tokens",
    "Mamba": "its states cannot be continued by several tokens",
    "Jamba": "its states cannot be continued by several tokens",
    "Zamba 2": "its layers share a module of attention",
}

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 128,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}


def obstacle_of(model: Any, context_len: int = 256) -> str | None:
    engine = load_engine(model, context_len=context_len)
    engine.close()
    return engine.batch_obstacle


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_the_reason_why_a_model_is_not_batched_is_named(family: str) -> None:
    assert obstacle_of(tiny(family)) == REASONS[family]


@pytest.mark.parametrize("rope", [LONGROPE, DYNAMIC])
def test_scaled_positions_are_batched_in_contexts_in_which_they_are_not_scaled(rope: dict[str, Any]) -> None:
    limit = 128
    model = tiny("Llama", 2, rope_parameters=rope, max_position_embeddings=limit if rope is DYNAMIC else 1024)
    plain, prompts = copy.deepcopy(model), [some_ids(limit - 12), some_ids(9, 1)]
    engine = load_engine(model, context_len=limit)
    assert engine.batch_obstacle is None
    answers = concurrent_answers(engine, prompts, max_new_tokens=12, ignore_eos=True)
    for ids, actual in zip(prompts, answers, strict=True):
        assert_same(plain, ids, actual, reference(plain, ids, 12))
    engine.close()


def test_positions_that_depend_on_the_longest_sequence_are_the_reason_in_longer_contexts() -> None:
    model = tiny("Llama", 2, rope_parameters=LONGROPE, max_position_embeddings=1024)
    assert obstacle_of(model, 129) == "its positions depend on the longest sequence in contexts above 128 tokens"


def test_a_load_with_another_context_leaves_nothing_of_the_one_before() -> None:
    engine = TransformersEngine(tiny("Llama", 2, rope_parameters=LONGROPE, max_position_embeddings=1024), BYTES)
    for context_len, batched in ((128, True), (256, False), (128, True)):
        engine.load(slots=2, context_len=context_len)
        assert (engine.batch_obstacle is None) is batched
        assert (engine.kv_cache_tokens is not None) is batched
        assert len(answer(engine, some_ids(9), max_new_tokens=4, ignore_eos=True)) == 4
        engine.close()


def test_a_model_that_computes_single_tokens_otherwise_is_batched() -> None:
    model = tiny("Nemotron-H", 3)  # limits the length of time steps only in longer chunks
    plain, ids = copy.deepcopy(model), some_ids(40)
    engine = load_engine(model)
    assert engine.batch_obstacle is None
    assert_same(plain, ids, answer(engine, ids, max_new_tokens=12, ignore_eos=True), reference(plain, ids, 12))
    engine.close()


def test_sinks_that_attention_ignores_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = PackedStep.attend

    def without_sinks(*arguments: Any, sinks: torch.Tensor | None, **options: Any) -> torch.Tensor:
        assert sinks is not None
        return attend(*arguments, **options)

    monkeypatch.setattr(PackedStep, "attend", without_sinks)
    assert obstacle_of(tiny("GPT-OSS, with sinks")) == "packed rows change its answers"
