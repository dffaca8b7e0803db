"""Narrower ranges of one server's parameters, as its owner sets them."""

from __future__ import annotations

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
