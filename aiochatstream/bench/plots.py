"""Plots of a load test: sweeps, distributions and the course of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiochatstream.bench import table
from aiochatstream.bench.charts import COLOURS, INK, Axis, Chart, Point, Series, Span, line_chart, timeline
from aiochatstream.bench.load import LoadRun
from aiochatstream.bench.metrics import RunSummary
from aiochatstream.bench.request import RequestRecord

MAX_DOTS = 3000
MAX_ROWS = 250

QUEUED, WAITING, STREAMING, ABORTED, REFUSED, FAILED = *(COLOURS[number] for number in (6, 1, 0, 4, 3)), INK
LEGEND = (
    ("queued", QUEUED),
    ("until the first text", WAITING),
    ("streaming", STREAMING),
    ("aborted", ABORTED),
    ("refused", REFUSED),
    ("failed", FAILED),
)


def sweep_plots(summaries: Sequence[RunSummary]) -> list[Chart]:
    """Return plots of throughput and latency over the concurrency."""
    levels = [float(summary.concurrency or 1) for summary in summaries]
    x = Axis("concurrent users (log)", log=True, ticks=sorted(set(levels)))

    def plot(title: str, unit: str, lines: dict[str, list[float | None]]) -> Chart:
        series = [
            Series(
                name, [(level, value) for level, value in zip(levels, values, strict=True) if value is not None], colour
            )
            for (name, values), colour in zip(lines.items(), COLOURS, strict=False)
        ]
        return line_chart(title, x, Axis(unit), series)

    def percentiles(metric: str) -> dict[str, list[float | None]]:
        return {
            name: [_milliseconds(table.figure(getattr(summary, metric), name)) for summary in summaries]
            for name in ("p50", "p95")
        }

    return [
        plot("Throughput", "output tokens/s", {"all users": [summary.tokens_per_s for summary in summaries]}),
        plot("Requests", "completed requests/s", {"all users": [summary.requests_per_s for summary in summaries]}),
        plot("Time to first token", "TTFT, ms", percentiles("ttft_s")),
        plot("Time per output token", "TPOT, ms", percentiles("tpot_s")),
    ]


def distribution_plots(runs: Sequence[LoadRun], names: Sequence[str]) -> list[Chart]:
    """Return the cumulative distribution of each latency, with a line for each run."""
    metrics: dict[str, Callable[[RequestRecord], list[float | None]]] = {
        "Time to first token (TTFT)": lambda record: [record.ttft],
        "Gaps between texts (ITL)": lambda record: list(record.gaps),
        "Time per output token (TPOT)": lambda record: [record.tpot],
        "End-to-end latency (E2E)": lambda record: [record.e2e],
    }
    plots = []
    for title, metric in metrics.items():
        series = [
            Series(name, cumulative([value for record in timed(run) for value in metric(record)]), colour)
            for run, name, colour in zip(runs, names, COLOURS * len(runs), strict=False)
        ]
        share = Axis("values at or below, %", ticks=[0, 25, 50, 75, 100])
        plots.append(line_chart(title, Axis("ms"), share, series, style="steps"))
    return plots


def course_plots(run: LoadRun) -> list[Chart]:
    """Return plots of TTFT and ITL over time, and the timeline of the requests."""
    ttft = [(record.arrivals[0] - run.start, record.ttft * 1000) for record in timed(run) if record.ttft is not None]
    itl = [
        (arrival - run.start, gap * 1000)
        for record in timed(run)
        for arrival, gap in zip(record.arrivals[1:], record.gaps, strict=True)
    ]
    x = Axis("seconds since the start of the run")

    def plot(title: str, unit: str, points: list[Point], colour: str) -> Chart:
        shown = points[:: 1 + len(points) // MAX_DOTS]
        name = f"{len(points)} values" + (f" ({len(shown)} shown)" if len(shown) < len(points) else "")
        return line_chart(title, x, Axis(unit), [Series(name, shown, colour)], style="dots")

    return [
        plot("Time to first token over time", "TTFT, ms", ttft, COLOURS[0]),
        plot("Gaps between texts over time", "ITL, ms", itl, COLOURS[2]),
        request_timeline(run, x),
    ]


def request_timeline(run: LoadRun, x: Axis) -> Chart:
    """Return a plot with a row for each request, coloured by phase."""
    records = sorted(run.records, key=lambda record: record.start)
    shown = records[:MAX_ROWS]
    spans = [
        Span(row, start - run.start, end - run.start, colour)
        for row, record in enumerate(shown)
        for start, end, colour in phases(record)
    ]
    count = f"first {len(shown)} of {len(records)}" if len(shown) < len(records) else str(len(records))
    return timeline(f"Timeline of the requests ({count})", x, Axis("requests, by start"), spans, LEGEND)


def phases(record: RequestRecord) -> list[tuple[float, float, str]]:
    """Return start, end and colour of the successive phases of a request."""
    ends = {"failed": FAILED, "refused": REFUSED, "aborted": ABORTED}
    if not record.arrivals:
        return [(record.start, record.end, ends.get(record.outcome, WAITING))]
    first = record.arrivals[0]
    dequeued = min(first, record.start + (record.stats.queue_s or 0.0))
    return [
        (record.start, dequeued, QUEUED),
        (dequeued, first, WAITING),
        (first, record.end, ends.get(record.outcome, STREAMING)),
    ]


def cumulative(values: Sequence[float | None]) -> list[Point]:
    """Return points (milliseconds, percentage of values at or below), at most a few thousand."""
    known = sorted(value * 1000 for value in values if value is not None)
    points = [(value, 100 * (rank + 1) / len(known)) for rank, value in enumerate(known)]
    thinned = points[:: 1 + len(points) // MAX_DOTS]
    return [(known[0], 0.0), *thinned, points[-1]] if known else []


def timed(run: LoadRun) -> list[RequestRecord]:
    """Return the requests whose latencies count, as in metrics.py."""
    return [record for record in run.records if record.outcome == "completed" and record.kind != "slow"]


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
