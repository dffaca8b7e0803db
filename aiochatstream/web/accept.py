"""Headers with which a client says what it accepts: https://www.rfc-editor.org/rfc/rfc9110#section-12.5."""

from __future__ import annotations

import re
from collections.abc import Iterable

QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def qualities(headers: Iterable[str]) -> dict[str, float]:
    """Return what is named, in lower case, each with its quality from 0 (not acceptable) to 1.

    Other parameters than ``q`` are ignored. A quality that is not one counts as 0.
    """
    found: dict[str, float] = {}
    for part in ",".join(headers).split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            key, _, value = (piece.strip() for piece in parameter.partition("="))
            if key == "q":
                quality = float(value) if QUALITY.fullmatch(value) else 0.0
        if name:
            found[name] = max(quality, found.get(name, 0.0))
    return found


def accepts_gzip(headers: Iterable[str]) -> bool:
    """Return whether a response may be compressed by gzip, and the client does not like it plain better."""
    found = qualities(headers)
    gzip = max(found.get("gzip", 0.0), found.get("x-gzip", 0.0))
    if "gzip" not in found and "x-gzip" not in found:
        gzip = found.get("*", 0.0)
    return gzip > 0 and gzip >= found.get("identity", 0.0)
