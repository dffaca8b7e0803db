"""What a comparison found: rounds, and how each server's stand to the baseline's, pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from common import Spread, table

from aiochatstream.bench.metrics import Distribution, Summary
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
"""How each is headed, what it is multiplied with to be shown (times: milliseconds), and its digits."""

COUNTING_ERROR = 0.02
"""A tokenizer that reads an answer's text again may find so many more or fewer tokens than were made."""


@dataclass(frozen=True)
class Round:
    """One server's turn. Times in seconds; None: nothing is known.

    cut: it took too long and was ended; the latencies are of the requests that had ended, and it is in no ratio.
    client_cpu: share of one core that the load generator took.
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
    def of(cls, server: str, concurrency: int, number: int, summary: Summary, *, cut: bool) -> Round:
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
        """One of METRICS."""
        if name.endswith("_per_s"):
            return float(getattr(self, name)) if self.ok else None
        what, _, figure = name.partition("_")
        distribution = getattr(self, f"{what}_s")
        return None if distribution is None else float(getattr(distribution, figure))


Rounds = Sequence[Round]


def pairs(rounds: Rounds, server: str, baseline: str, concurrency: int, metric: str) -> list[float]:
    """A server's figure over the baseline's of the same round, for each round in which both have it."""

    def figures(name: str) -> Mapping[int, float | None]:
        whole = [one for one in rounds if not one.cut]
        return {one.round: one.metric(metric) for one in whole if (one.server, one.concurrency) == (name, concurrency)}

    theirs, base = figures(server), figures(baseline)
    return [
        mine / other
        for number in sorted(theirs)
        if (mine := theirs[number]) is not None and (other := base.get(number))
    ]


def ratios(rounds: Rounds, baseline: str) -> list[dict[str, Any]]:
    """Of every other server, at each concurrency, in each metric that both have."""
    found = []
    for concurrency in unique(one.concurrency for one in rounds):
        for server in unique(one.server for one in rounds if one.server != baseline):
            for metric in METRICS:
                values = pairs(rounds, server, baseline, concurrency, metric)
                if values:
                    where = {"server": server, "baseline": baseline, "concurrency": concurrency, "metric": metric}
                    found.append({**where, **asdict(Spread.of(values)), "pairs": values})
    return found


def render(rounds: Rounds, baseline: str) -> str:
    """A table for each concurrency: medians of the rounds, then ratios."""
    return "\n\n".join(
        f"concurrency {concurrency}\n" + _level([one for one in rounds if one.concurrency == concurrency], baseline)
        for concurrency in unique(one.concurrency for one in rounds)
    )


def _level(rounds: Rounds, baseline: str) -> str:
    head = ["", *(title for title, _, _ in METRICS.values()), "ok", "refused", "failed", "rounds"]
    servers = unique(one.server for one in rounds)
    rows = [_medians(server, [one for one in rounds if one.server == server]) for server in servers]
    for server in servers:
        if server != baseline:
            cells = [pairs(rounds, server, baseline, rounds[0].concurrency, metric) for metric in METRICS]
            shown = [Spread.of(values).show(2) if values else "-" for values in cells]
            if any(cells):
                rows.append([f"{server} / {baseline}", *shown, "", "", "", str(max(map(len, cells)))])
    return table(head, rows)


def _medians(server: str, rounds: Rounds) -> list[str]:
    cells = []
    for metric, (_, factor, digits) in METRICS.items():
        values = [value for one in rounds if (value := one.metric(metric)) is not None]
        cells.append(f"{median(values) * factor:,.{digits}f}" if values else "-")
    counts = [sum(getattr(one, outcome) for one in rounds) for outcome in ("ok", "refused", "failed")]
    return [server, *cells, *map(str, counts), str(len(rounds))]


def remarks(rounds: Rounds, max_tokens: int) -> list[str]:
    """What a reader of the table has to know besides."""
    lines = []
    for server in unique(one.server for one in rounds):
        own = [one for one in rounds if one.server == server]
        if cut := sum(one.cut for one in own):
            lines.append(
                f"{server}: {cut} of {len(own)} rounds took too long and were cut: they are in no ratio, and their "
                "latencies are of the answers that had ended"
            )
        lengths = [one.answer_tokens_mean for one in own if one.answer_tokens_mean is not None]
        if lengths and abs(median(lengths) - max_tokens) > COUNTING_ERROR * max_tokens:
            lines.append(
                f"{server}: its answers had {median(lengths):.1f} tokens, not {max_tokens}: answers/s and E2E do not "
                "compare, tokens/s and TPOT do"
            )
        if (busiest := max(one.client_cpu for one in own)) > BUSY_GENERATOR:
            lines.append(f"{server}: the load generator took {busiest:.0%} of a core and may be the limit itself")
    return lines


def unique(values: Any) -> list[Any]:
    """In the order in which they come."""
    return list(dict.fromkeys(values))
