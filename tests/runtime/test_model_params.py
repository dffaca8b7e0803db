"""Parameters of the model's generation_config: ranges, precedence and log lines."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aiochatstream.params import GenerationParams, ParamLimits
from aiochatstream.runtime.model_params import accept_model_params

OURS, UNLIMITED = GenerationParams(), ParamLimits()


def test_values_in_range_are_accepted_silently(caplog: pytest.LogCaptureFixture) -> None:
    values = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.05}
    assert accept_model_params(values, OURS, UNLIMITED) == values
    assert caplog.text == ""


def test_lengths_and_unknown_names_have_no_effect() -> None:
    assert accept_model_params({"max_new_tokens": 9, "max_length": 9, "num_beams": 4}, OURS, UNLIMITED) == {}


def test_the_applications_values_have_precedence_even_if_they_equal_the_defaults() -> None:
    params = GenerationParams(temperature=1.0, top_k=5)
    assert accept_model_params({"temperature": 0.6, "top_k": 20, "top_p": 0.9}, params, UNLIMITED) == {"top_p": 0.9}


def test_a_penalty_is_used_only_with_the_method_of_transformers() -> None:
    subtractive = GenerationParams(repetition_penalty_method="subtractive")
    assert accept_model_params({"repetition_penalty": 1.1}, subtractive, UNLIMITED) == {}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", 3.0, 2),
        ("temperature", math.inf, 2),
        ("top_k", 5000, 500),
        ("top_k", 0, 1),
        ("min_p", -0.5, 0),
        ("repetition_penalty", 0.0, 0.01),
    ],
)
def test_values_out_of_range_are_clamped_with_a_log_line(
    name: str, value: float, expected: float, caplog: pytest.LogCaptureFixture
) -> None:
    limits = ParamLimits(top_k=(1, 500))
    assert accept_model_params({name: value}, GenerationParams(), limits) == {name: expected}
    assert f"Using {name}={expected} instead of {value} of the model's generation_config." in caplog.text


@pytest.mark.parametrize(("name", "value"), [("temperature", math.nan), ("top_p", "0.9"), ("top_k", 20.5)])
def test_invalid_values_are_ignored_with_a_log_line(name: str, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert accept_model_params({name: value, "min_p": 0.1}, OURS, UNLIMITED) == {"min_p": 0.1}
    assert f"Ignoring {name}={value!r} of the model's generation_config" in caplog.text
