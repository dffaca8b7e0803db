"""Sampling parameters in the generation_config of a model."""

from __future__ import annotations

from typing import Any

SAMPLING = ("temperature", "top_k", "top_p", "min_p")

SAMPLING_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
"""Values of a model that samples and does not specify others: its own distribution, unchanged."""


def params_of(generation_config: Any) -> dict[str, Any]:
    """Return the parameters that ``generation_config`` specifies, by the names of GenerationParams.

    As in transformers, temperature, top_k, top_p and min_p apply only if ``do_sample`` is true, and
    ``repetition_penalty`` always. Lengths are never among them.
    """
    samples = getattr(generation_config, "do_sample", None)
    names = ("repetition_penalty", *(SAMPLING if samples else ()))
    values = {name: getattr(generation_config, name, None) for name in names}
    specified = {name: value for name, value in values.items() if value is not None}
    return {**SAMPLING_DEFAULTS, **specified} if samples else specified
