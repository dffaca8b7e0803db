"""Parsing of Accept and Accept-Encoding: https://www.rfc-editor.org/rfc/rfc9110#section-12.5."""

from __future__ import annotations

import re
from collections.abc import Iterable

QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def parse_qualities(headers: Iterable[str]) -> dict[str, float]:
    """Return the quality of each listed name, from 0 (not acceptable) to 1. Names are in lower case.

    Parameters other than ``q`` are ignored. An invalid quality counts as 0.
    """
    values: dict[str, float] = {}
    for part in ",".join(headers).split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            key, _, value = (piece.strip() for piece in parameter.partition("="))
            if key == "q":
                quality = float(value) if QUALITY.fullmatch(value) else 0.0
        if name:
            values[name] = max(quality, values.get(name, 0.0))
    return values


def accepts_gzip(headers: Iterable[str]) -> bool:
    """Return True if the client accepts gzip and does not prefer an uncompressed response."""
    values = parse_qualities(headers)
    gzip = max(values.get("gzip", 0.0), values.get("x-gzip", 0.0))
    if "gzip" not in values and "x-gzip" not in values:
        gzip = values.get("*", 0.0)
    return gzip > 0 and gzip >= values.get("identity", 0.0)
