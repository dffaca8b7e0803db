"""bench/overhead.py's results: what the server itself costs."""

from __future__ import annotations

from statistics import median
from typing import Any

from aiochatstream.bench.svg import COLOURS, Amount, Axis, amounts
from page.section import Report, Section, cell, middle, spread

TITLE = "What the server itself costs"

OURS = "ours"
HELD, SCALE = "KiB per client", 1000.0

Sides = dict[str, list[dict[str, float]]]
"""The rounds of each server."""

FIGURES = {
    "answers_per_s": ("answers/s", 1),
    "chunks_per_s": ("pieces/s", 0),
    "cpu_us_per_chunk": ("CPU, µs/piece", 1),
    "reads_per_answer": ("reads/answer", 0),
    "client_cpu": ("client, cores", 2),
}
"""How a round's figures are called, and their digits. One that is not here is shown by its own name."""

PLOTS = {
    "answers": ("Answers per second", "answers per second", "answers_per_s"),
    "cpu": ("CPU time of the server per piece of text", "microseconds of CPU time per piece", "cpu_us_per_chunk"),
}


def write(section: Section, report: Report) -> None:
    section.say(
        "An engine without a model yields all pieces of an answer at once, so that only the server's own work is left. "
        '"ours" is the whole stack, "bare" an aiohttp handler that writes the same pieces one by one, "at once" the '
        "same without a turn of the event loop between two pieces: the ceiling. `python bench/overhead.py --help` "
        "defines every figure."
    )
    section.circumstances(report)
    answers: dict[str, Sides] = {
        wire: {side: rounds for side, rounds in measured["rounds"].items() if rounds}
        for wire, measured in report["answers"].items()
    }
    if any(answers.values()):
        _answers(section, answers)
    section.points([cell(f"{name}: not measured: {why}") for name, why in report.get("not_measured", {}).items()])
    if memory := report["memory_kib_per_client"]:
        section.say("Resident memory that a fresh server gains, for each client that it holds:")
        section.table(("clients", HELD), [(name, f"{kib:.1f}") for name, kib in memory.items()])
        held = [Amount(name, kib, kib, kib, COLOURS[2]) for name, kib in memory.items()]
        section.picture("memory", "Memory per client", _plot("Memory per client", HELD, held))
    if kept := report.get("conversation_bytes"):
        section.say("Resident memory of an idle conversation of 4 turns (2,000 characters) and its session:")
        section.table(("idle conversations", "bytes each"), [(name, f"{count:.0f}") for name, count in kept.items()])
    for key, measured in report.items():
        if key.endswith("_s") and any(measured.values()):
            _times(section, key, {name: times for name, times in measured.items() if times})


def _answers(section: Section, answers: dict[str, Sides]) -> None:
    for kind, (title, unit, figure) in PLOTS.items():
        section.picture(kind, title, _plot(title, unit, _bars(answers, figure)))
    known = [figure for sides in answers.values() for rounds in sides.values() for figure in rounds[0]]
    figures = {figure: FIGURES.get(figure, (figure.replace("_", " "), 2)) for figure in dict.fromkeys(known)}
    rows = []
    for wire, sides in answers.items():
        for side, rounds in sides.items():
            cells = [spread([one.get(figure) for one in rounds], digits) for figure, (_, digits) in figures.items()]
            pairs = [] if side == OURS else list(zip(sides.get(OURS, []), rounds, strict=False))
            ratios = [
                spread([ours[figure] / theirs[figure] for ours, theirs in pairs], 2)
                for figure in ("answers_per_s", "cpu_us_per_chunk")
            ]
            rows.append((wire, side, *cells, *ratios, str(len(rounds))))
    ratios = ["ours / it, answers/s", "ours / it, CPU"]
    section.table(("format", "server", *(name for name, _ in figures.values()), *ratios, "rounds"), rows, names=2)
    section.say("Median of the rounds (least-most). The ratios are taken pair by pair.")


def _bars(answers: dict[str, Sides], figure: str) -> list[Amount]:
    sides = list(dict.fromkeys(side for measured in answers.values() for side in measured))
    colours = dict(zip(sides, COLOURS * len(sides), strict=False))
    bars = []
    for wire, measured in answers.items():
        for side, rounds in measured.items():
            values = [one[figure] for one in rounds]
            bars.append(Amount(f"{wire}, {side}", median(values), min(values), max(values), colours[side]))
    return bars


def _times(section: Section, key: str, measured: dict[str, dict[str, Any]]) -> None:
    """Distributions in seconds: a row for each."""
    titles = {"lag_s": "How late the event loop runs what is due"}
    title = titles.get(key, key.removesuffix("_s").replace("_", " ").capitalize())
    section.say(f"{title}:")
    ranks = ("p50", "p90", "p95", "p99", "mean")
    section.table(
        ("milliseconds", *ranks, "values"),
        [
            (name, *(middle([times[rank] * SCALE], 2) for rank in ranks), str(times["count"]))
            for name, times in measured.items()
        ],
    )
    bars = [
        Amount(f"{name}, {rank}", value, value, value, colour)
        for name, times in measured.items()
        for rank, colour in (("p50", COLOURS[5]), ("p99", COLOURS[0]))
        for value in [times[rank] * SCALE]
    ]
    section.picture(key.removesuffix("_s").replace("_", "-"), title, _plot(title, "milliseconds", bars))


def _plot(title: str, unit: str, bars: list[Amount]) -> str:
    return amounts(title, Axis.over(unit, [bar.high for bar in bars]), bars)
