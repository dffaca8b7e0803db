"""The ranges of one server's parameters: narrower ones as its owner sets them, and what they come to."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from aiochatstream.params import GenerationParams, ParamOverrides, validated

LIMITED = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
)
"""What can have limits. Of ``max_new_tokens``, the server's own value is the most."""

ABOVE_ZERO = 0.01
"""Is told as the least value where a range begins above 0."""


def checked_limits(
    given: Mapping[str, Sequence[float]] | None, params: GenerationParams
) -> dict[str, tuple[float, float]]:
    """The least and the most by name, as ``param_limits`` gives them.

    Raises ValueError that names the parameter: where it is unknown, out of everyone's range, or reversed, or leaves out
    the server's own value in ``params``.
    """
    limits: dict[str, tuple[float, float]] = {}
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"param_limits: must be a mapping of names to (least, most), not {given!r}.")
    for name, pair in (given or {}).items():
        if name not in LIMITED:
            raise ValueError(f"param_limits: {name!r} is none of {', '.join(LIMITED)}.")
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(f"param_limits: {name}: must be (least, most), not {pair!r}.")
        for bound in pair:
            try:
                validated(ParamOverrides, {name: bound})
            except ValueError as error:
                raise ValueError(f"param_limits: {error}") from None
        least, most = pair
        if least is None or most is None or least > most:
            raise ValueError(f"param_limits: {name}: must be (least, most), not {pair!r}.")
        own = getattr(params, name)
        if not least <= own <= most:
            raise ValueError(f"param_limits: {name}: must hold the server's own, {own}; {least} to {most} does not.")
        limits[name] = (least, most)
    return limits


@functools.cache
def _widest_ranges() -> Mapping[str, tuple[float, float]]:
    """Return the ranges that anyone may set. Making the schema holds the event loop for several milliseconds."""
    schema = GenerationParams.model_json_schema()["properties"]
    return {name: (schema[name].get("minimum", ABOVE_ZERO), schema[name]["maximum"]) for name in LIMITED}


def allowed_ranges(limits: Mapping[str, tuple[float, float]], own: GenerationParams) -> dict[str, tuple[float, float]]:
    """The least and the most of what is a number, by name: as anyone may, or narrower where ``limits`` say so.

    :param own: the parameters that hold beside them.
    """
    ranges = dict(_widest_ranges())
    if own.repetition_penalty_method == "multiplicative":
        ranges["repetition_penalty"] = (ABOVE_ZERO, ranges["repetition_penalty"][1])
    return {"max_new_tokens": (1, own.max_new_tokens), **ranges, **limits}
