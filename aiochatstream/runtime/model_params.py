"""The model's own parameters, as far as the server accepts them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from aiochatstream.params import GenerationParams, ParamLimits

logger = logging.getLogger(__name__)


def accept_model_params(
    model_params: Mapping[str, Any], params: GenerationParams, limits: ParamLimits
) -> dict[str, Any]:
    """Return the model's own values of the parameters that ``params`` leaves unset.

    A value out of range is clamped, and an invalid value ignored, each with a log line.

    :param model_params: :attr:`~aiochatstream.Engine.default_params`.
    :param params: the application's parameters.
    :param limits: ranges that the server allows.
    """
    fixed = {"max_new_tokens", *params.model_fields_set}
    if params.repetition_penalty_method != "multiplicative":  # the model's penalty has another meaning
        fixed.add("repetition_penalty")
    ranges = limits.ranges(params)
    accepted = {}
    for name, value in model_params.items():
        if name in fixed or name not in ranges:
            continue
        minimum, maximum = ranges[name]
        try:
            clamped = min(max(value, minimum), maximum)
            GenerationParams(**{name: clamped})
        except (TypeError, ValueError):
            logger.warning("Ignoring %s=%r of the model's generation_config: invalid value.", name, value)
            continue
        if clamped != value:
            logger.warning("Using %s=%s instead of %s of the model's generation_config.", name, clamped, value)
        accepted[name] = clamped
    return accepted
