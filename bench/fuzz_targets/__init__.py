"""Fuzz targets: one module each, with ``def fuzz(seconds: float, seed: int) -> Findings``.

``bench/fuzz.py`` runs every module of this folder in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Findings:
    """Result of one target.

    tried: number of inputs.
    faults: one line for each input that broke a promise, with what reproduces it.
    """

    tried: int = 0
    faults: list[str] = field(default_factory=list)


def rounds(seconds: float, seed: int) -> Iterator[int]:
    """Yield seeds, one for each round, until ``seconds`` have passed; at least one."""
    end = time.monotonic() + seconds
    while True:
        yield seed
        seed += 1
        if time.monotonic() >= end:
            return
