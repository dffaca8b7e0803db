"""Section of bench/overhead.py: the overhead of the server."""

from __future__ import annotations

from statistics import median
from typing import Any

from aiochatstream.bench.charts import COLOURS, Bar, bar_chart
from page.section import Report, Section, cell, format_median, format_spread

TITLE = "Overhead of the server"

OURS = "ours"
MEMORY_UNIT, SCALE = "KiB per client", 1000.0

Rounds = dict[str, list[dict[str, float]]]
"""Figures of the rounds of each server."""

FIGURES = {
    "answers_per_s": ("answers/s", 1),
    "chunks_per_s": ("chunks/s", 0),
    "cpu_us_per_chunk": ("CPU, µs/chunk", 1),
    "reads_per_answer": ("reads/answer", 0),
    "client_cpu": ("client, cores", 2),
}
"""Title and digits of each figure. Other figures are shown by their own names."""

PLOTS = {
    "answers": ("Answers per second", "answers/s", "answers_per_s"),
    "cpu": ("CPU time of the server per chunk", "CPU time, µs per chunk", "cpu_us_per_chunk"),
}


def write(section: Section, report: Report) -> None:
    section.paragraph(
        "An engine without a model yields all chunks of an answer immediately, so that only the server's work remains. "
        '"ours" is the whole stack, "bare" an aiohttp handler that writes the same chunks one by one, "at once" the '
        "same handler without an iteration of the event loop between chunks: the upper limit. `python "
        "bench/overhead.py --help` defines the figures."
    )
    section.setup(report)
    answers: dict[str, Rounds] = {
        wire: {server: rounds for server, rounds in results["rounds"].items() if rounds}
        for wire, results in report["answers"].items()
    }
    if any(answers.values()):
        _answers(section, answers)
    section.bullets([cell(f"{name}: not measured: {why}") for name, why in report.get("not_measured", {}).items()])
    if memory := report["memory_kib_per_client"]:
        section.paragraph("Growth of a new server's resident memory for each connected client:")
        section.table(("clients", MEMORY_UNIT), [(name, f"{kib:.1f}") for name, kib in memory.items()])
        bars = [Bar(name, kib, kib, kib, COLOURS[2]) for name, kib in memory.items()]
        section.plot("memory", bar_chart("Memory per client", MEMORY_UNIT, bars))
    if sizes := report.get("conversation_bytes"):
        section.paragraph("Resident memory of an idle conversation of 4 turns (2,000 characters) and its session:")
        section.table(("idle conversations", "bytes each"), [(name, f"{size:.0f}") for name, size in sizes.items()])
    for key, distributions in report.items():
        if key.endswith("_s") and any(distributions.values()):
            _times(section, key, {name: times for name, times in distributions.items() if times})


def _answers(section: Section, answers: dict[str, Rounds]) -> None:
    for name, (title, unit, figure) in PLOTS.items():
        section.plot(name, bar_chart(title, unit, _bars(answers, figure)))
    known = [figure for servers in answers.values() for rounds in servers.values() for figure in rounds[0]]
    figures = {figure: FIGURES.get(figure, (figure.replace("_", " "), 2)) for figure in dict.fromkeys(known)}
    rows = []
    for wire, servers in answers.items():
        for server, rounds in servers.items():
            cells = [
                format_spread([values.get(figure) for values in rounds], digits)
                for figure, (_, digits) in figures.items()
            ]
            pairs = [] if server == OURS else list(zip(servers.get(OURS, []), rounds, strict=False))
            ratios = [
                format_spread([ours[figure] / other[figure] for ours, other in pairs], 2)
                for figure in ("answers_per_s", "cpu_us_per_chunk")
            ]
            rows.append((wire, server, *cells, *ratios, str(len(rounds))))
    ratios = ["ours / server, answers/s", "ours / server, CPU"]
    section.table(("format", "server", *(name for name, _ in figures.values()), *ratios, "rounds"), rows, names=2)
    section.paragraph("Medians of the rounds (min-max). Ratios are computed pair by pair.")


def _bars(answers: dict[str, Rounds], figure: str) -> list[Bar]:
    names = list(dict.fromkeys(server for servers in answers.values() for server in servers))
    colours = dict(zip(names, COLOURS * len(names), strict=False))
    bars = []
    for wire, servers in answers.items():
        for server, rounds in servers.items():
            values = [figures[figure] for figures in rounds]
            bars.append(Bar(f"{wire}, {server}", median(values), min(values), max(values), colours[server]))
    return bars


def _times(section: Section, key: str, distributions: dict[str, dict[str, Any]]) -> None:
    """Append a table and a plot of distributions in seconds."""
    titles = {"lag_s": "Lag of the event loop", "latency_s": "Latency of a chunk"}
    title = titles.get(key, key.removesuffix("_s").replace("_", " ").capitalize())
    section.paragraph(f"{title}:")
    ranks = ("p50", "p90", "p95", "p99", "mean")
    section.table(
        ("milliseconds", *ranks, "values"),
        [
            (name, *(format_median([times[rank] * SCALE], 2) for rank in ranks), str(times["count"]))
            for name, times in distributions.items()
        ],
    )
    bars = [
        Bar(f"{name}, {rank}", value, value, value, colour)
        for name, times in distributions.items()
        for rank, colour in (("p50", COLOURS[5]), ("p99", COLOURS[0]))
        for value in [times[rank] * SCALE]
    ]
    section.plot(key.removesuffix("_s").replace("_", "-"), bar_chart(title, "ms", bars))
