"""``python bench/report.py``: the page of results, from the JSON files that the other scripts wrote."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from common import OK, SCHEMA_VERSION, WRONG_USE
from page import browser, compare, engine, overhead, soak
from page.section import Report, Section

RESULTS = Path(__file__).parent / "results"

HEAD = """\
# Results

Made by `make bench` from the JSON files in this folder; do not edit it. [How to read it](../README.md)."""

FAST = "compare.py ours ours-compiled vllm --concurrency 1,4,8,16,32 --rounds 2"

SECTIONS: dict[str, tuple[str, str, Callable[[Section, Report], None]]] = {
    "compare": ("compare.py --rounds 2", compare.TITLE, compare.write),
    "compare-compile": (FAST, f"{compare.TITLE}, compiled", compare.write),
    "overhead": ("overhead.py", overhead.TITLE, overhead.write),
    "engine": ("engine.py", engine.TITLE, engine.write),
    "engine-compile": ("engine.py --compile", f"{engine.TITLE}, compiled", engine.write),
    "browser": ("browser.py", browser.TITLE, browser.write),
    "soak": ("soak.py", soak.TITLE, soak.write),
}
"""By file: what makes it, the title, and what writes the section."""

HELP = """\
Reads the JSON files of the other scripts in the folder, as far as they are there, and writes README.md and its plots
beside them. The same JSON gives the same page, byte by byte.

exit codes: 0 written; 2 wrong use, or a file that is not what its name says
"""


def files(folder: Path) -> dict[str, str]:
    """The page and its plots, by file name. Raises ValueError with one sentence for JSON that is not as it must be."""
    made: dict[str, str] = {}
    blocks = [HEAD]
    for name, (command, title, write) in SECTIONS.items():
        section = Section(name, title)
        file = folder / f"{name}.json"
        if file.exists():
            report = read(file, f"aiochatstream-bench-{command.partition('.')[0]}")
            try:
                write(section, report)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{file} is not complete: {type(error).__name__}: {error}.") from error
        else:
            section.say("Not measured yet. This measures it:")
            section.code(f"python bench/{command} --json bench/results/{name}.json")
        blocks.append(section.markdown)
        made |= section.pictures
    return {"README.md": "\n\n".join(blocks) + "\n", **made}


def read(file: Path, schema: str) -> Report:
    """Raises ValueError where it is no such file."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}.") from None
    if not isinstance(report, dict) or report.get("schema") != schema:
        raise ValueError(f"{file} is no {schema} file.")
    if report.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{file} has schema_version {report.get('schema_version')}, and this reads {SCHEMA_VERSION}.")
    return report


def write(folder: Path) -> list[str]:
    """Write what ``files`` gives, take away plots of before, and tell the names."""
    made = files(folder)
    for name in SECTIONS:
        for old in folder.glob(f"{name}-*.svg"):
            if old.name not in made:
                old.unlink()
    for file, text in made.items():
        (folder / file).write_text(text, encoding="utf-8")
    return list(made)


def main() -> int:
    made = argparse.ArgumentParser(
        description="The page of results, from the JSON files that the other scripts wrote.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="with the JSON files (bench/results)")
    folder = made.parse_args().folder
    if not folder.is_dir():
        made.error(f"{folder} is no folder")
    try:
        written = write(folder)
    except ValueError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return WRONG_USE
    print(f"{folder}: wrote {', '.join(written)}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
