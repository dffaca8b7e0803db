"""A section of the page as it is written: paragraphs, tables, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from statistics import median
from typing import Any

from common import Spread

Report = dict[str, Any]
"""A JSON file of one of the scripts."""


class Section:
    """Markdown blocks, and the pictures in them as SVG by file name."""

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.blocks = [f"## {title}"]
        self.pictures: dict[str, str] = {}

    @property
    def markdown(self) -> str:
        return "\n\n".join(self.blocks)

    def say(self, paragraph: str) -> None:
        self.blocks.append(paragraph)

    def points(self, lines: Sequence[str]) -> None:
        """A list; nothing where there are no lines."""
        if lines:
            self.blocks.append("\n".join(f"- {line}" for line in lines))

    def code(self, text: str) -> None:
        self.blocks.append(f"```sh\n{text}\n```")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> None:
        """names: columns to the left; the others are numbers, to the right. Nothing where there are no rows."""
        if not rows:
            return
        marks = [":--"] * names + ["--:"] * (len(head) - names)
        lines = [marks if number == 1 else list(map(cell, row)) for number, row in enumerate([head, marks, *rows])]
        self.blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def picture(self, kind: str, title: str, svg: str) -> None:
        file = f"{self.name}-{kind}.svg"
        self.pictures[file] = svg + "\n"
        self.blocks.append(f"![{title}]({file})")

    def circumstances(self, report: Report) -> None:
        """When, where and how it was measured."""
        if report["interrupted"]:
            self.say("**Interrupted**: this is only what was measured until then.")
        surroundings = dict(report["environment"])
        cores, load = surroundings.pop("cores", None), surroundings.pop("load_average", None)
        machine = [surroundings.pop("cpu", ""), f"{cores} cores", surroundings.pop("system", "")]
        if load:
            machine.append(f"load average {', '.join(f'{one:g}' for one in load)} (1, 5, 15 minutes) at the end")
        created = datetime.fromisoformat(report["created"])
        self.points(
            [
                f"measured: {created:%Y-%m-%d %H:%M} {created.tzname()}",
                f"machine: {', '.join(filter(None, machine))}",
                f"software: {pairs(surroundings)}",
                f"parameters: {pairs(report['parameters'])}",
            ]
        )
        self.code(report["command"])


def pairs(values: dict[str, Any]) -> str:
    """Names and values in a line, but those that were not set."""
    told = [
        f"{name.replace('_', ' ')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in values.items()
        if value not in (None, [], "", {})
    ]
    return cell(", ".join(told))


def cell(text: str) -> str:
    """``text`` on one line, with nothing in it that Markdown would take for its own."""
    for mark, written in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(mark, written)
    return text


def middle(values: Sequence[float | None], digits: int = 1) -> str:
    """The median; a dash where nothing is known."""
    known = [value for value in values if value is not None]
    return f"{median(known):,.{digits}f}" if known else "-"


def spread(values: Sequence[float | None], digits: int = 1) -> str:
    """The median with the least and the most, where there is more than one."""
    known = [value for value in values if value is not None]
    return Spread.of(known).show(digits) if len(known) > 1 else middle(known, digits)
