"""Rounds of a comparison, and ratios of each server to the baseline, pair by pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, TypeVar

from common import Spread, table

from aiochatstream.bench.metrics import Distribution, RunSummary
from aiochatstream.bench.table import BUSY_GENERATOR

METRICS = {
    "output_tokens_per_s": ("tokens/s", 1.0, 1),
    "requests_per_s": ("answers/s", 1.0, 3),
    "ttft_p50": ("TTFT p50", 1e3, 0),
    "ttft_p99": ("TTFT p99", 1e3, 0),
    "tpot_p50": ("TPOT p50", 1e3, 1),
    "itl_p50": ("ITL p50", 1e3, 1),
    "itl_p99": ("ITL p99", 1e3, 1),
    "e2e_p50": ("E2E p50", 1e3, 0),
}
"""Title, factor (times in milliseconds) and digits of each metric in tables."""

COUNTING_ERROR = 0.02
"""Relative error of token counts that a tokenizer derives from the text of an answer."""


T = TypeVar("T")


@dataclass(frozen=True)
class Round:
    """Figures of one server in one round. Times in seconds; None if unknown.

    cut: the round exceeded its time limit. Its latencies cover the finished requests, and no ratio includes it.
    client_cpu: share of one core that the load generator used.
    """

    server: str
    concurrency: int
    round: int
    requests: int
    ok: int
    refused: int
    failed: int
    cut: bool
    took_s: float
    output_tokens_per_s: float
    requests_per_s: float
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    itl_s: Distribution | None
    e2e_s: Distribution | None
    queue_s: Distribution | None
    answer_tokens_mean: float | None
    client_cpu: float

    @classmethod
    def of(cls, server: str, concurrency: int, number: int, summary: RunSummary, *, cut: bool) -> Round:
        return cls(
            server=server,
            concurrency=concurrency,
            round=number,
            requests=summary.requests + summary.unfinished,
            ok=summary.completed,
            refused=summary.refused,
            failed=summary.failed,
            cut=cut,
            took_s=summary.seconds,
            output_tokens_per_s=summary.tokens_per_s,
            requests_per_s=summary.requests_per_s,
            ttft_s=summary.ttft_s,
            tpot_s=summary.tpot_s,
            itl_s=summary.itl_s,
            e2e_s=summary.e2e_s,
            queue_s=summary.queue_s,
            answer_tokens_mean=summary.output_tokens / summary.completed if summary.completed else None,
            client_cpu=summary.generator_cpu,
        )

    def metric(self, name: str) -> float | None:
        """Return the value of one of METRICS."""
        if name.endswith("_per_s"):
            return float(getattr(self, name)) if self.ok else None
        latency, _, figure = name.partition("_")
        distribution = getattr(self, f"{latency}_s")
        return None if distribution is None else float(getattr(distribution, figure))


Rounds = Sequence[Round]


def pairs(rounds: Rounds, server: str, baseline: str, concurrency: int, metric: str) -> list[float]:
    """Return the ratios of a server's metric to the baseline's, for each round in which both are known."""

    def figures(name: str) -> Mapping[int, float | None]:
        return {
            round_.round: round_.metric(metric)
            for round_ in rounds
            if not round_.cut and (round_.server, round_.concurrency) == (name, concurrency)
        }

    values, base_values = figures(server), figures(baseline)
    return [
        value / base
        for number in sorted(values)
        if (value := values[number]) is not None and (base := base_values.get(number))
    ]


def ratios(rounds: Rounds, baseline: str) -> list[dict[str, Any]]:
    """Return ratios of every other server, at each concurrency, in each metric that is known for both."""
    results = []
    for concurrency in unique(round_.concurrency for round_ in rounds):
        for server in unique(round_.server for round_ in rounds if round_.server != baseline):
            for metric in METRICS:
                values = pairs(rounds, server, baseline, concurrency, metric)
                if values:
                    key = {"server": server, "baseline": baseline, "concurrency": concurrency, "metric": metric}
                    results.append({**key, **asdict(Spread.of(values)), "pairs": values})
    return results


def render(rounds: Rounds, baseline: str) -> str:
    """Return a table for each concurrency: medians of the rounds, then ratios."""
    return "\n\n".join(
        f"concurrency {concurrency}\n"
        + _level([round_ for round_ in rounds if round_.concurrency == concurrency], baseline)
        for concurrency in unique(round_.concurrency for round_ in rounds)
    )


def _level(rounds: Rounds, baseline: str) -> str:
    head = ["", *(title for title, _, _ in METRICS.values()), "ok", "refused", "failed", "rounds"]
    servers = unique(round_.server for round_ in rounds)
    rows = [_medians(server, [round_ for round_ in rounds if round_.server == server]) for server in servers]
    for server in servers:
        if server != baseline:
            cells = [pairs(rounds, server, baseline, rounds[0].concurrency, metric) for metric in METRICS]
            texts = [Spread.of(values).show(2) if values else "-" for values in cells]
            if any(cells):
                rows.append([f"{server} / {baseline}", *texts, "", "", "", str(max(map(len, cells)))])
    return table(head, rows)


def _medians(server: str, rounds: Rounds) -> list[str]:
    cells = []
    for metric, (_, factor, digits) in METRICS.items():
        values = [value for round_ in rounds if (value := round_.metric(metric)) is not None]
        cells.append(f"{median(values) * factor:,.{digits}f}" if values else "-")
    counts = [sum(getattr(round_, outcome) for round_ in rounds) for outcome in ("ok", "refused", "failed")]
    return [server, *cells, *map(str, counts), str(len(rounds))]


def remarks(rounds: Rounds, max_tokens: int) -> list[str]:
    """Return limitations of the figures, a sentence for each."""
    lines = []
    for server in unique(round_.server for round_ in rounds):
        own = [round_ for round_ in rounds if round_.server == server]
        if cut := sum(round_.cut for round_ in own):
            lines.append(
                f"{server}: {cut} of {len(own)} rounds exceeded the time limit: no ratio includes them, and their "
                "latencies cover finished answers only"
            )
        lengths = [round_.answer_tokens_mean for round_ in own if round_.answer_tokens_mean is not None]
        if lengths and abs(median(lengths) - max_tokens) > COUNTING_ERROR * max_tokens:
            lines.append(
                f"{server}: the answers had {median(lengths):.1f} tokens, not {max_tokens}: tokens/s and TPOT are "
                "comparable, answers/s and E2E are not"
            )
        if (busiest := max(round_.client_cpu for round_ in own)) > BUSY_GENERATOR:
            lines.append(f"{server}: the load generator used {busiest:.0%} of a core and may be the bottleneck")
    return lines


def unique(values: Iterable[T]) -> list[T]:
    """Return the distinct values in their order."""
    return list(dict.fromkeys(values))
