"""Shared by the scripts in this folder: options, medians, tables and JSON files."""

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
"""An absolute path in other text, but not the part of a URL after ``http:/``."""
HERE = {Path.home(), ROOT, Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix), Path(sys.base_prefix)}
KNOWN = re.compile(
    "(?:"
    + "|".join(re.escape(str(path)) for path in sorted(HERE, reverse=True) if path != Path(path.anchor))
    + r""")(?![\w.-])(?:/[^/\s"',:;)\]}<>\\]+)*/?"""
)
"""A path into a folder that is certainly on this machine, after any character."""


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def show(self, digits: int = 1) -> str:
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


def integer(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return the type of an option that is an integer in a range."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(f"must be an integer from {minimum} to {maximum}, not {text!r}")
        return int(text)

    return parse


def number(minimum: float, maximum: float) -> Callable[[str], float]:
    """Return the type of an option that is a number in a range."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"must be a number from {minimum:g} to {maximum:g}, not {text!r}")
        return value

    return parse


def integers(minimum: int, maximum: int) -> Callable[[str], list[int]]:
    """Return the type of an option that is a list of integers, separated by commas."""
    parse = integer(minimum, maximum)
    return lambda text: [parse(part) for part in text.split(",")]


def json_file(text: str) -> Path:
    """Return the path of a file that can be written."""
    file = Path(text)
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{file} cannot be written: it is a folder, or its folder is missing")
    return file


def new_parser(description: str, epilog: str) -> argparse.ArgumentParser:
    """Return a parser with the option ``--json`` that keeps line breaks of the texts."""
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=json_file, metavar="FILE", help="file for all results, with the environment")
    return parser


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text. The first column is aligned to the left, the others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def show_figure(value: float | str) -> str:
    """Return a cell of a table."""
    return value if isinstance(value, str) else f"{value:.2f}".removesuffix(".00")


def progress(sentence: str, *, live: bool = False) -> None:
    """Report progress on stderr. With ``live``, overwrite the line before, if stderr is a terminal."""
    overwrite = live and sys.stderr.isatty()
    print(f"{sentence:<100}" if overwrite else sentence, end="\r" if overwrite else "\n", file=sys.stderr, flush=True)


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run ``main`` and exit with its code. Treat other terminating signals like Ctrl-C, so that it cleans up."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells make background jobs ignore it
    for signal_number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(signal_number) != signal.SIG_IGN:  # nohup
            signal.signal(signal_number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def command(script: str) -> str:
    """Return the command line of this process."""
    return shlex.join(["python", f"bench/{script}.py", *sys.argv[1:]])


def without_paths(text: str) -> str:
    """Return ``text`` with absolute paths replaced: relative to this project, otherwise by the last name only."""

    def shorten(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(match[0]))
        if path.is_relative_to(ROOT):
            return str(path.relative_to(ROOT))
        return "~" if path == Path.home() else path.name

    def shorten_existing(match: re.Match[str]) -> str:
        return shorten(match) if Path(match[0]).parent.exists() else match[0]  # part of a URL or a model's name

    return PATH.sub(shorten_existing, KNOWN.sub(shorten, text))


def write_json(
    options: argparse.Namespace,
    script: str,
    results: Mapping[str, Any],
    *,
    interrupted: bool,
    hidden: Collection[str] = (),
    **versions: str,
) -> None:
    """Write the file of ``--json``, if it is set, without paths of this machine.

    :param hidden: options that the file does not contain.
    :param versions: versions of software besides those of aiochatstream's environment.
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
        "environment": {**environment(), **versions},
        **results,
    }
    text = without_paths(json.dumps(report, ensure_ascii=False, indent=1, default=str))
    options.json.write_text(text + "\n", encoding="utf-8")
