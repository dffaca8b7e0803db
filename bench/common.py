"""What the scripts in this folder share: options, medians, tables and JSON files."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

from aiochatstream.bench.exports import environment

OK = 0
FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130
SCHEMA_VERSION = 1
ROOT = Path(__file__).parent.parent
PATH = re.compile(r"""(?<![^\s=:,"'(\[])/[^/\s"',)\]]+(?:/[^/\s"',:)\]]+)+""")
"""An absolute path within other text; what follows http:/ is none."""
HERE = {Path.home(), ROOT, Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix), Path(sys.base_prefix)}
KNOWN = re.compile(
    "(?:"
    + "|".join(re.escape(str(path)) for path in sorted(HERE, reverse=True) if path != Path(path.anchor))
    + r""")(?![\w.-])(?:/[^/\s"',:;)\]}<>\\]+)*/?"""
)
"""A path into a folder that is surely of this machine, whatever stands before it."""


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, and the least and most of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def show(self, digits: int = 1) -> str:
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


def whole(least: int, most: int) -> Callable[[str], int]:
    """An option's type: a whole number within bounds."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, not {text!r}")
        return int(text)

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """An option's type: a number within bounds."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a number from {least:g} to {most:g}, not {text!r}")
        return value

    return read


def wholes(least: int, most: int) -> Callable[[str], list[int]]:
    """An option's type: whole numbers with commas between them."""
    read = whole(least, most)
    return lambda text: [read(part) for part in text.split(",")]


def json_file(text: str) -> Path:
    """An option's type: a file that can be written."""
    file = Path(text)
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{file} cannot be written: it is a folder or lies in none")
    return file


def parser(description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser that keeps the texts' lines as they are, with the option that every script has."""
    made = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=json_file, metavar="FILE", help="write everything there, with the environment")
    return made


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need: the first to the left, the others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def progress(sentence: str, *, live: bool = False) -> None:
    """Say on stderr how far it is. ``live``: over the line before, in a terminal."""
    over = live and sys.stderr.isatty()
    print(f"{sentence:<100}" if over else sentence, end="\r" if over else "\n", file=sys.stderr, flush=True)


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run ``main`` and exit with its code. What else would end the script at once ends it as Ctrl-C does, so that it
    stops what it started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would not hear it
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def command(script: str) -> str:
    """The command line as it was typed."""
    return shlex.join(["python", f"bench/{script}.py", *sys.argv[1:]])


def without_paths(text: str) -> str:
    """``text`` without the absolute paths of this machine: as seen from this project, elsewhere the last name only."""

    def shorten(found: re.Match[str]) -> str:
        path = Path(os.path.normpath(found[0]))
        if path.is_relative_to(ROOT):
            return str(path.relative_to(ROOT))
        return "~" if path == Path.home() else path.name

    def shorten_if_here(found: re.Match[str]) -> str:
        return shorten(found) if Path(found[0]).parent.exists() else found[0]  # of a URL, or in a model's name

    return PATH.sub(shorten_if_here, KNOWN.sub(shorten, text))


def write_json(
    options: argparse.Namespace,
    script: str,
    results: Mapping[str, Any],
    *,
    interrupted: bool,
    hidden: Collection[str] = (),
    **more: str,
) -> None:
    """Write ``--json``, where it was asked for. It is meant to be shown: no path of this machine is in it.

    :param hidden: options that are not told.
    :param more: versions.
    """
    if options.json is None:
        return
    parameters = {name: value for name, value in vars(options).items() if name not in ("json", *hidden)}
    report = {
        "schema": f"aiochatstream-bench-{script}",
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "interrupted": interrupted,
        "command": command(script),
        "parameters": parameters,
        "environment": {**environment(), **more},
        **results,
    }
    text = without_paths(json.dumps(report, ensure_ascii=False, indent=1, default=str))
    options.json.write_text(text + "\n", encoding="utf-8")
