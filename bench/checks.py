"""Checks of a soak test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Any

from common import table


@dataclass(frozen=True)
class Check:
    """A measured value and its limit. ``measured`` is None if unknown, which fails a ``required`` check."""

    name: str
    measured: float | None
    limit: float
    detail: str = ""
    required: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "measured": self.measured,
            "limit": self.limit,
            "detail": self.detail,
            "needed": self.required,
            "word": self.word,
        }

    @property
    def passed(self) -> bool:
        return not self.required if self.measured is None else self.measured <= self.limit

    @property
    def word(self) -> str:
        if not self.passed:
            return "FAILED"
        return "not measured" if self.measured is None else "ok"


@dataclass
class Sample:
    """Resident memory of the server process after a number of requests."""

    requests: int
    rss: int


def memory_growth(samples: Sequence[Sample]) -> float | None:
    """Return KiB per 1,000 requests over the second half of the requests; None if there are too few samples."""
    half = [sample for sample in samples if sample.requests >= samples[-1].requests / 2]
    requests = [float(sample.requests) for sample in half]
    if len(set(requests)) < 3:
        return None
    return linear_regression(requests, [sample.rss for sample in half]).slope * 1000 / 1024


def render_traffic(actions: Counter[str], outcomes: Counter[str]) -> str:
    counts = [*actions.most_common(), *((f"-> {name}", count) for name, count in outcomes.most_common())]
    return table(("traffic", "requests"), [(name, str(count)) for name, count in counts])


def render_checks(checks: Sequence[Check], result: str) -> str:
    rows = [
        (check.name, "-" if check.measured is None else f"{check.measured:.0f}", f"{check.limit:.0f}", check.word)
        for check in checks
    ]
    lines = [table(("check", "measured", "limit", "result"), rows)]
    lines += [f"{check.name}: {check.detail}" for check in checks if not check.passed and check.detail]
    lines.append(f"\nRESULT: {result}")
    return "\n".join(lines)
