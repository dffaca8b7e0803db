"""Section of bench/scaling.py: a front of several servers."""

from __future__ import annotations

from statistics import median
from typing import Any

from aiochatstream.bench.charts import COLOURS, Bar, bar_chart
from page.section import Report, Section, cell, format_median, format_spread

TITLE = "In front of several servers"

Row = dict[str, Any]

OUTCOMES = ("whole", "wrong", "lost", "refused", "hung")
FIGURES: dict[str, tuple[str, float, int]] = {
    "tokens_per_s": ("tokens/s", 1, 0),
    "cpu_us_per_token": ("CPU, µs/token", 1, 1),
    "ttft_p50_s": ("TTFT p50, ms", 1e3, 1),
    "ttft_p99_s": ("TTFT p99, ms", 1e3, 1),
    "e2e_p50_s": ("E2E p50, s", 1, 2),
    "e2e_p99_s": ("E2E p99, s", 1, 2),
    "refusal_p50_s": ("refusal p50, ms", 1e3, 1),
    "slow_share": ("requests to the slow one", 1, 2),
    "cached_share": ("prompt tokens cached, share", 1, 3),
    "p50_s": ("p50, ms", 1e3, 1),
}
"""Title, factor and digits of figures whose median is shown."""
MAXIMA: dict[str, tuple[str, float, int]] = {
    "longest_gap_s": ("longest gap, s", 1, 2),
    "max_s": ("maximum, ms", 1e3, 1),
    "rss_mib": ("memory, MiB", 1, 0),
    "threads": ("threads", 1, 0),
    "most_running": ("most in an upstream", 1, 0),
    "missed": ("not noticed", 1, 0),
}
"""Title, factor and digits of figures whose maximum of all rounds is shown."""

PARTS = {
    "overhead": "Overhead over the upstream itself (direct).",
    "streams": "Thousands of slow streams.",
    "two": "Two upstreams against one.",
    "kill": "`kill -9` of one of two upstreams, in the middle of its answers.",
    "stop": "SIGSTOP of one of two upstreams, in the middle of its answers: alive, connected, silent.",
    "rolling": "Rolling restart of all upstreams, while users continue.",
    "overload": "Three times as many users as slots.",
    "slow": "One of two upstreams is ten times slower.",
    "affinity": "Prompt tokens from the prefix caches, of conversations at half load: one upstream shows all that can "
    'be, "direct" is a random choice of the upstream for each turn.',
    "leave": "Clients disconnect: milliseconds until the upstream knows.",
}
"""Sentence before the table of each scenario. Others are shown by their own names."""


def write(section: Section, report: Report) -> None:
    section.paragraph(
        "Fake upstreams (OpenAI-compatible, without a model) behind `aiochatstream serve URL...`, by two protocols: "
        '"chat" is /chat_stream with sessions, "relay" /v1. The client compares answers word for word: whole is '
        "complete and exact, wrong ends regularly but differs, lost ends with an error or a lost connection, refused "
        "is 429 or 503, hung has no end. Counts are sums; gaps, memory and threads are maxima, other figures medians "
        "of the rounds (min-max). `python bench/scaling.py --help` defines the figures."
    )
    section.setup(report)
    section.bullets([cell(f"{name}: not measured: {why}") for name, why in report["not_measured"].items()])
    rows = report["rows"]
    if not rows:
        section.paragraph("No scenario was completed.")
        return
    _bars(section, report["bars"])
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        selected = [row for row in rows if row["scenario"] == scenario]
        section.paragraph(PARTS.get(scenario, scenario))
        _table(section, selected)
        if scenario == "overhead":
            _plot(section, selected)


def _bars(section: Section, bars: list[dict[str, Any]]) -> None:
    cells = [
        (bar["name"], f"{bar['measured']:,.2f}".removesuffix(".00"), _limit(bar), "yes" if bar["passed"] else "**no**")
        for bar in bars
    ]
    section.table(("wanted", "measured", "limit", "reached"), cells)


def _limit(bar: dict[str, Any]) -> str:
    return f"{'≥' if bar['minimum'] else '≤'} {bar['limit']:g}"


def _table(section: Section, rows: list[Row]) -> None:
    """Append a line for each server in each case, with the figures that a row of the scenario has."""
    counted = any("whole" in row for row in rows)
    figures = {name: figure for name, figure in FIGURES.items() if any(row.get(name) is not None for row in rows)}
    maxima = {name: figure for name, figure in MAXIMA.items() if any(row.get(name) is not None for row in rows)}
    titles = [title for title, _, _ in (*figures.values(), *maxima.values())]
    lines = []
    for case, server in dict.fromkeys((row["case"], row["server"]) for row in rows):
        rounds = [row for row in rows if (row["case"], row["server"]) == (case, server)]
        cells = [
            format_spread([_scaled(row.get(name), factor) for row in rounds], digits)
            for name, (_, factor, digits) in figures.items()
        ]
        for name, (_, factor, digits) in maxima.items():
            known = [row[name] * factor for row in rounds if row.get(name) is not None]
            cells.append(format_median([max(known)] if known else [], digits))
        outcomes = [f"{sum(row[outcome] for row in rounds):,}" for outcome in OUTCOMES] if counted else []
        lines.append((case, server, *outcomes, *cells, str(len(rounds))))
    section.table(("case", "server", *(OUTCOMES if counted else ()), *titles, "rounds"), lines, names=2)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _plot(section: Section, rows: list[Row]) -> None:
    """Append a plot of the CPU time per token in the last case, the one with many streams."""
    case = rows[-1]["case"]
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["case"] == case and row.get("cpu_us_per_token") is not None:
            values.setdefault(row["server"], []).append(row["cpu_us_per_token"])
    bars = [
        Bar(server, median(times), min(times), max(times), colour)
        for (server, times), colour in zip(values.items(), COLOURS * len(values), strict=False)
    ]
    if bars:
        section.plot("cpu", bar_chart(f"CPU time of the server, {case}", "CPU time, µs per token", bars))
