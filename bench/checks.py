"""What a soak is judged by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

from common import table


@dataclass(frozen=True)
class Check:
    """One line of the verdict. ``measured`` None: it could not be had, which is a fault where it is ``needed``."""

    name: str
    measured: float | None
    limit: float
    detail: str = ""
    needed: bool = False

    @property
    def holds(self) -> bool:
        return not self.needed if self.measured is None else self.measured <= self.limit

    @property
    def word(self) -> str:
        if not self.holds:
            return "FAILED"
        return "not measured" if self.measured is None else "ok"


@dataclass
class Sample:
    """How the server process was at a moment."""

    requests: int
    rss: int


def memory_growth(samples: Sequence[Sample]) -> float | None:
    """KiB per 1,000 requests, over the second half of the requests; None where there are too few."""
    half = [sample for sample in samples if sample.requests >= samples[-1].requests / 2]
    requests = [float(sample.requests) for sample in half]
    if len(set(requests)) < 3:
        return None
    return linear_regression(requests, [sample.rss for sample in half]).slope * 1000 / 1024


def render_traffic(actions: Counter[str], outcomes: Counter[str]) -> str:
    done = [*actions.most_common(), *((f"-> {name}", count) for name, count in outcomes.most_common())]
    return table(("traffic", "requests"), [(name, str(count)) for name, count in done])


def render_verdict(checks: Sequence[Check], word: str) -> str:
    rows = [
        (check.name, "-" if check.measured is None else f"{check.measured:.0f}", f"{check.limit:.0f}", check.word)
        for check in checks
    ]
    lines = [table(("check", "measured", "limit", "verdict"), rows)]
    lines += [f"{check.name}: {check.detail}" for check in checks if not check.holds and check.detail]
    lines.append(f"\nVERDICT: {word}")
    return "\n".join(lines)


def first(sentences: list[str]) -> str:
    return sentences[0][:100] if sentences else ""
