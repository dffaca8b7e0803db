"""Section of bench/engine.py: the engine without HTTP."""

from __future__ import annotations

import re
from typing import Any

from common import Spread, show_figure

from aiochatstream.bench.charts import COLOURS, Axis, Chart, Series, line_chart
from page.section import Report, Section

TITLE = "The engine without HTTP"

PLOTS = {
    ("prefill", "tokens/s"): ("Prefill", "prompt, tokens", "prompt tokens/s"),
    ("decode", "ms/step"): ("Decoding step by context", "context, tokens", "step, ms"),
    ("batch", "tokens/s"): ("Batched decoding", "answers in the batch", "tokens/s, all answers"),
    ("turns", "ms to first token"): ("Second turn", "history, tokens", "TTFT, ms"),
}
"""Title and axes by part and unit. Other rows appear in the table only."""


def write(section: Section, report: Report) -> None:
    section.paragraph(
        "The engine and plain `model.generate` take turns with the same random tokens and greedy decoding. The figures "
        "are medians of the rounds (min-max), and ratios of engine to model.generate, pair by pair. `python "
        "bench/engine.py --help` defines the figures."
    )
    section.setup(report)
    section.bullets(report.get("left_out", []))
    rows, floor = report["rows"], report["floor_ms"]
    if not rows:
        section.paragraph("No row was completed.")
        return
    for (part, unit), (title, x, y) in PLOTS.items():
        if plotted := [row for row in rows if (row["part"], row["unit"]) == (part, unit)]:
            section.plot(part, _plot(title, x, y, plotted, floor if part == "decode" else 0.0))
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
    section.paragraph(
        f"A step at batch size 1 must read all weights once: {report['weight_bytes'] / 2**20:,.0f} MiB at "
        f"{report['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s, measured in the same run, take {floor:.1f} ms (the floor)."
    )

    tables = {
        "stalls": "Gaps between the tokens of running answers, before and during the prefill of a long prompt.",
        "besides": "Time to the first token of short questions and of a long document, alone and beside each other.",
        "profiles": "Milliseconds of the parts of a decoding step, by rows in the batch: medians of the steps.",
        "hybrids": "Milliseconds of a decoding step of random hybrid models, by rows, and their growth.",
        "lookups": "Microseconds of a lookup in the prefix cache, by the number of cached sequences.",
        "chats": "Memory of short chats that run together, in tokens, with `kv_cache_bytes` for four whole contexts.",
    }
    for name, sentence in tables.items():
        if rows := report.get(name, []):
            section.paragraph(sentence)
            section.table(tuple(rows[0]), [tuple(map(show_figure, row.values())) for row in rows])


def _has_floor(row: dict[str, Any]) -> bool:
    return (row["part"], row["unit"]) == ("decode", "ms/step")


def _plot(title: str, x_label: str, y_label: str, rows: list[dict[str, Any]], floor: float) -> Chart:
    sizes = [int(re.findall(r"\d+", row["at"])[0]) for row in rows]
    series = []
    for name, key, colour in (("engine", "engine_spread", COLOURS[0]), ("model.generate", "plain_spread", COLOURS[3])):
        spreads = [Spread(**row[key]) for row in rows]
        points = [(size, spread.median) for size, spread in zip(sizes, spreads, strict=True)]
        series.append(Series(name, points, colour, [(spread.low, spread.high) for spread in spreads]))
    if floor:
        series.append(Series("floor", [(size, floor) for size in sizes], COLOURS[6]))
    x = Axis(f"{x_label} (log)", log=True, ticks=sorted(set(sizes)))
    return line_chart(title, x, Axis(y_label), series)
