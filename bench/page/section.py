"""A section of the page: paragraphs, tables, plots."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from statistics import median
from typing import Any

from common import Spread

from aiochatstream.bench.charts import Chart

Report = dict[str, Any]
"""Contents of a script's JSON file."""


class Section:
    """Markdown blocks, and the SVG files of the plots by name."""

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.blocks = [f"## {title}"]
        self.plots: dict[str, str] = {}

    @property
    def markdown(self) -> str:
        return "\n\n".join(self.blocks)

    def paragraph(self, text: str) -> None:
        self.blocks.append(text)

    def bullets(self, lines: Sequence[str]) -> None:
        """Append a list, unless there are no lines."""
        if lines:
            self.blocks.append("\n".join(f"- {line}" for line in lines))

    def command(self, text: str) -> None:
        self.blocks.append(f"```sh\n{text}\n```")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> None:
        """Append a table, unless there are no rows. The first ``names`` columns are text, the others numbers."""
        if not rows:
            return
        alignments = [":--"] * names + ["--:"] * (len(head) - names)
        lines = [list(map(cell, head)), alignments, *(list(map(cell, row)) for row in rows)]
        self.blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def plot(self, name: str, chart: Chart) -> None:
        file = f"{self.name}-{name}.svg"
        self.plots[file] = chart.svg
        self.blocks.append(f"![{chart.title}]({file})")

    def setup(self, report: Report) -> None:
        """Append date, machine, versions, parameters and command of the measurement."""
        if report["interrupted"]:
            self.paragraph("**Interrupted**: these are the results until then.")
        versions = dict(report["environment"])
        cores, load = versions.pop("cores", None), versions.pop("load_average", None)
        machine = [versions.pop("cpu", ""), f"{cores} cores", versions.pop("system", "")]
        if load:
            machine.append(f"load average {', '.join(f'{value:g}' for value in load)} (1, 5, 15 minutes) at the end")
        created = datetime.fromisoformat(report["created"])
        self.bullets(
            [
                f"measured: {created:%Y-%m-%d %H:%M} {created.tzname()}",
                f"machine: {', '.join(filter(None, machine))}",
                f"software: {pairs(versions)}",
                f"parameters: {pairs(report['parameters'])}",
            ]
        )
        self.command(report["command"])


def pairs(values: dict[str, Any]) -> str:
    """Return names and values on a line, without values that are not set."""
    texts = [
        f"{name.replace('_', ' ')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in values.items()
        if value not in (None, [], "", {})
    ]
    return cell(", ".join(texts))


def cell(text: str) -> str:
    """Return ``text`` on one line, with Markdown's special characters escaped."""
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(character, escaped)
    return text


def format_median(values: Sequence[float | None], digits: int = 1) -> str:
    """Return the median of the known values, or a dash."""
    known = [value for value in values if value is not None]
    return f"{median(known):,.{digits}f}" if known else "-"


def format_spread(values: Sequence[float | None], digits: int = 1) -> str:
    """Return the median of the known values, with minimum and maximum if there are several."""
    known = [value for value in values if value is not None]
    return Spread.of(known).show(digits) if len(known) > 1 else format_median(known, digits)
