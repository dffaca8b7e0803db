"""bench/soak.py's results: mixed traffic and a verdict."""

from __future__ import annotations

from aiochatstream.bench.svg import COLOURS, Axis, Series, chart
from page.section import Report, Section

TITLE = "Mixed traffic"


def write(section: Section, report: Report) -> None:
    section.say(
        "Users who talk, regenerate, hang up, read slowly and send nonsense, more of them than places; each remembers "
        "what it was told and compares. `python bench/soak.py --help` defines every check."
    )
    section.circumstances(report)
    verdict = report["verdict"]
    word = verdict.get("word") or ("all holds" if verdict["holds"] else "FAILED")
    section.say(f"Verdict: **{word}**, after {report['requests']:,} requests.")
    section.table(
        ("check", "measured", "at most", "verdict"),
        [
            (
                f"{check['name']}, {check['detail']}" if check["name"] == "memory" else check["name"],
                "-" if check["measured"] is None else f"{check['measured']:,.0f}",
                f"{check['limit']:,.0f}",
                check["word"],
            )
            for check in verdict["checks"]
        ],
    )
    section.points([f"fault: {fault}" for fault in report["faults"][:10]])
    traffic = sorted(report["actions"].items(), key=lambda item: -item[1])
    outcomes = sorted(report["outcomes"].items(), key=lambda item: -item[1])
    section.table(("what was done", "times"), [(name, f"{count:,}") for name, count in traffic])
    section.table(("what came of the answers", "times"), [(name, f"{count:,}") for name, count in outcomes])
    if samples := report["samples"]:
        points = [(sample["requests"], sample["rss"] / 2**20) for sample in samples]
        title = "Memory of the server"
        x = Axis.over("requests so far", [requests for requests, _ in points])
        y = Axis.over("resident memory, MiB", [memory for _, memory in points])
        section.picture("memory", title, chart(title, x, y, [Series("resident memory", points, COLOURS[0], "steps")]))
