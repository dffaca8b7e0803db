"""Which plots a load test has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiochatstream.bench import table
from aiochatstream.bench.load import Load
from aiochatstream.bench.metrics import Summary
from aiochatstream.bench.request import Record
from aiochatstream.bench.svg import COLOURS, Axis, Bar, Point, Series, bars, chart

MOST_DOTS = 3000
MOST_ROWS = 250

QUEUED, WAITING, STREAMING, HUNG_UP, REFUSED, FAILED = (
    COLOURS[6],
    COLOURS[1],
    COLOURS[0],
    COLOURS[4],
    COLOURS[3],
    "#000",
)
LEGEND = (
    ("queued", QUEUED),
    ("to the first text", WAITING),
    ("streaming", STREAMING),
    ("hung up", HUNG_UP),
    ("refused", REFUSED),
    ("failed", FAILED),
)


def of_sweep(summaries: Sequence[Summary]) -> list[str]:
    """How throughput and latency go with the concurrency."""
    levels = [float(summary.concurrency or 1) for summary in summaries]
    x = Axis("users at a time (concurrency)", sorted(set(levels)), log=True)

    def against(title: str, unit: str, lines: dict[str, list[float | None]]) -> str:
        series = [
            Series(name, [(at, value) for at, value in zip(levels, values, strict=True) if value is not None], colour)
            for (name, values), colour in zip(lines.items(), COLOURS, strict=False)
        ]
        return chart(title, x, Axis.over(unit, [value for one in series for _, value in one.points]), series)

    def milliseconds(metric: str) -> dict[str, list[float | None]]:
        return {
            name: [(at := table.known(getattr(summary, metric), name)) and at * 1000 for summary in summaries]
            for name in ("p50", "p95")
        }

    return [
        against(
            "Throughput", "output tokens per second", {"all users": [summary.tokens_per_s for summary in summaries]}
        ),
        against("Requests", "completed requests per second", {"all users": [run.requests_per_s for run in summaries]}),
        against("Time to first token", "TTFT, milliseconds", milliseconds("ttft_s")),
        against("Time per output token", "TPOT, milliseconds", milliseconds("tpot_s")),
    ]


def of_distributions(loads: Sequence[Load], names: Sequence[str]) -> list[str]:
    """The cumulative distribution of each latency, a line for each run."""
    metrics: dict[str, Callable[[Record], list[float | None]]] = {
        "Time to first token (TTFT)": lambda record: [record.ttft],
        "Gaps between pieces of text (ITL)": lambda record: list(record.gaps),
        "Time per output token (TPOT)": lambda record: [record.tpot],
        "Whole answers (E2E)": lambda record: [record.e2e],
    }
    drawn = []
    for title, metric in metrics.items():
        series = [
            Series(name, cumulative([value for record in timed(load) for value in metric(record)]), colour, "steps")
            for load, name, colour in zip(loads, names, COLOURS * len(loads), strict=False)
        ]
        x = Axis.over("milliseconds", [value for one in series for value, _ in one.points])
        drawn.append(chart(title, x, Axis("share at or below, %", [0, 25, 50, 75, 100]), series))
    return drawn


def over_time(load: Load) -> list[str]:
    """TTFT and ITL of one run as they came, and the timeline of its requests."""
    ttft = [(record.stamps[0] - load.started, record.ttft * 1000) for record in timed(load) if record.ttft is not None]
    itl = [
        (at - load.started, gap * 1000)
        for record in timed(load)
        for at, gap in zip(record.stamps[1:], record.gaps, strict=True)
    ]
    x = Axis.over("seconds since the run began", [load.ended - load.started])

    def dots(title: str, unit: str, points: list[Point], colour: str) -> str:
        shown = points[:: 1 + len(points) // MOST_DOTS]
        name = f"{len(points)} values" + (f", {len(shown)} of them shown" if len(shown) < len(points) else "")
        y = Axis.over(unit, [value for _, value in shown])
        return chart(title, x, y, [Series(name, shown, colour, "dots")])

    return [
        dots("Time to first token, over time", "TTFT, milliseconds", ttft, COLOURS[0]),
        dots("Gaps between pieces of text, over time", "ITL, milliseconds", itl, COLOURS[2]),
        timeline(load, x),
    ]


def timeline(load: Load, x: Axis) -> str:
    """A row for each request, coloured by phase."""
    records = sorted(load.records, key=lambda record: record.started)
    shown = records[:MOST_ROWS]
    drawn = [
        Bar(row, begin - load.started, end - load.started, colour)
        for row, record in enumerate(shown)
        for begin, end, colour in phases(record)
    ]
    title = (
        f"Timeline of the requests ({f'the first {len(shown)} of ' if len(shown) < len(records) else ''}{len(records)})"
    )
    return bars(title, x, "requests, in the order of their start", len(shown), drawn, LEGEND)


def phases(record: Record) -> list[tuple[float, float, str]]:
    """Begin, end and colour of what happened to a request, one after the other."""
    ends = {"failed": FAILED, "refused": REFUSED, "aborted": HUNG_UP}
    if not record.stamps:
        return [(record.started, record.ended, ends.get(record.outcome, WAITING))]
    first = record.stamps[0]
    served = min(first, record.started + (record.told.queue_s or 0.0))
    return [
        (record.started, served, QUEUED),
        (served, first, WAITING),
        (first, record.ended, ends.get(record.outcome, STREAMING)),
    ]


def cumulative(values: Sequence[float | None]) -> list[Point]:
    """(milliseconds, per cent of the values that are at or below), at most a few thousand points."""
    known = sorted(value * 1000 for value in values if value is not None)
    points = [(value, 100 * (rank + 1) / len(known)) for rank, value in enumerate(known)]
    thinned = points[:: 1 + len(points) // MOST_DOTS]
    return [(known[0], 0.0), *thinned, points[-1]] if known else []


def timed(load: Load) -> list[Record]:
    """The requests whose latencies count, as in metrics.py."""
    return [record for record in load.records if record.outcome == "completed" and record.kind != "slow"]


def names(summaries: Sequence[Summary]) -> list[str]:
    """What each run is called in a legend."""
    return [table.level(summary) for summary in summaries]
