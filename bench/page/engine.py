"""bench/engine.py's results: the engine without HTTP."""

from __future__ import annotations

import re
from typing import Any

from common import Spread

from aiochatstream.bench.svg import COLOURS, Axis, Series, chart
from page.section import Report, Section

TITLE = "The engine without HTTP"

PLOTS = {
    ("prefill", "tokens/s"): ("Reading the prompt", "prompt, tokens", "prompt tokens per second"),
    ("decode", "ms/step"): ("A step, by the tokens before it", "tokens before", "milliseconds per step"),
    ("batch", "tokens/s"): ("Several answers at once", "answers at once", "tokens per second, all together"),
    ("turns", "ms to first token"): ("The next turn", "history, tokens", "TTFT, milliseconds"),
}
"""Title and axes by part and unit. Other rows are in the table only."""


def write(section: Section, report: Report) -> None:
    section.say(
        "The engine and plain `model.generate` read the same random tokens and write greedily, in turn. Shown is the "
        "median of the rounds (least-most), and the ratio engine over model.generate, pair by pair. `python "
        "bench/engine.py --help` defines every figure."
    )
    section.circumstances(report)
    section.points(report.get("left_out", []))
    rows, floor = report["rows"], report["floor_ms"]
    if not rows:
        section.say("No row was completed.")
        return
    for (part, unit), (title, x, y) in PLOTS.items():
        if drawn := [row for row in rows if (row["part"], row["unit"]) == (part, unit)]:
            section.picture(part, title, _plot(title, x, y, drawn, floor if part == "decode" else 0.0))
    section.table(
        ("part", "at", "unit", "engine", "model.generate", "engine / model.generate", "engine / floor"),
        [
            (
                row["part"],
                row["at"],
                row["unit"],
                *(Spread(**row[side]).show() for side in ("engine_spread", "plain_spread")),
                Spread(**row["ratio"]).show(2),
                f"{row['engine_spread']['median'] / floor:.1f}" if _has_floor(row) and floor else "",
            )
            for row in rows
        ],
        names=3,
    )
    section.say(
        f"The floor of a step at batch 1 is reading all weights once: {report['weight_bytes'] / 2**20:,.0f} MiB over "
        f"{report['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s, measured in the same run, are {floor:.1f} ms."
    )

    tables = {
        "stalls": "What answers under way suffer while a long prompt is read: the gaps between their tokens.",
        "profiles": "Where the milliseconds of a decode step go, by rows; each is the median of the steps.",
    }
    for name, sentence in tables.items():
        if rows := report.get(name, []):
            section.say(sentence)
            section.table(
                tuple(rows[0]), [tuple(f"{one:.2f}".removesuffix(".00") for one in row.values()) for row in rows]
            )


def _has_floor(row: dict[str, Any]) -> bool:
    return (row["part"], row["unit"]) == ("decode", "ms/step")


def _plot(title: str, x_label: str, y_label: str, rows: list[dict[str, Any]], floor: float) -> str:
    places = [int(re.findall(r"\d+", row["at"])[0]) for row in rows]
    series = []
    for name, side, colour in (("engine", "engine_spread", COLOURS[0]), ("model.generate", "plain_spread", COLOURS[3])):
        spreads = [Spread(**row[side]) for row in rows]
        points = [(place, one.median) for place, one in zip(places, spreads, strict=True)]
        series.append(Series(name, points, colour, whiskers=[(one.low, one.high) for one in spreads]))
    drawn = [value for one in series for ends in one.whiskers for value in ends]
    if floor:
        series.append(Series("floor", [(place, floor) for place in places], COLOURS[6]))
        drawn.append(floor)
    x = Axis(f"{x_label} (log)", sorted(set(places)), log=True)
    return chart(title, x, Axis.over(y_label, drawn), series)
