"""Parameters from the options of ``serve`` and ``chat``."""

from __future__ import annotations

import pytest

from aiochatstream.console.options import ModelParams


def test_models_without_settings_of_their_own_have_our_defaults() -> None:
    params = ModelParams.of({"temperature": None, "top_p": None, "max_new_tokens": None, "port": 80})
    assert (params.temperature, params.top_p, params.model_fields_set) == (0.2, 0.7, set())


def test_options_are_the_applications_values() -> None:
    params = ModelParams.of({"temperature": 0.2, "max_new_tokens": 9})
    assert (params.temperature, params.max_new_tokens) == (0.2, 9)
    assert params.model_fields_set == {"temperature", "max_new_tokens"}
    with pytest.raises(ValueError, match=r"^temperature: must be a number from 0 \(greedy\) to 2, not 3\.$"):
        ModelParams.of({"temperature": 3})
