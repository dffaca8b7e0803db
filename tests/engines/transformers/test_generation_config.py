"""Sampling parameters in generation_config."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from aiochatstream.engines import RecordingEngine
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.engines.transformers.generation_config import params_of
from tests.engines.transformers.tiny_models import BYTES, tiny

QWEN3 = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"max_length": 40, "max_new_tokens": 9, "num_beams": 4}, {}),
        ({"do_sample": False, "temperature": 0.6, "top_k": 20, "min_p": 0.1}, {}),
        ({"temperature": 0.6, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"do_sample": True}, {"temperature": 1.0, "top_p": 1.0}),
        (QWEN3, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
        (
            {"do_sample": True, "min_p": 0.05, "repetition_penalty": 1.05},
            {"temperature": 1.0, "top_p": 1.0, "min_p": 0.05, "repetition_penalty": 1.05},
        ),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of transformers, for parameters without an effect
def test_a_model_that_samples_has_its_own_parameters(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert params_of(GenerationConfig(**config)) == expected


def test_a_model_may_have_no_generation_config() -> None:
    assert params_of(None) == {}


def test_an_engine_has_its_models_parameters_from_the_time_it_is_loaded(tmp_path: Any) -> None:
    model = tiny()
    model.generation_config = GenerationConfig(**QWEN3)
    engine = RecordingEngine(TransformersEngine(model, BYTES), tmp_path)
    assert engine.default_params == {}
    engine.load(slots=1, context_len=64)
    assert engine.default_params == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    engine.close()
