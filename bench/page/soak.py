"""Section of bench/soak.py: mixed traffic and the result of its checks."""

from __future__ import annotations

from aiochatstream.bench.charts import COLOURS, Axis, Series, line_chart
from page.section import Report, Section

TITLE = "Mixed traffic"


def write(section: Section, report: Report) -> None:
    section.paragraph(
        "Clients send messages, regenerate, disconnect, read slowly and send malformed requests. The server has fewer "
        "places than clients. Each client compares the history with the answers that it received. "
        "`python bench/soak.py --help` defines the checks."
    )
    section.setup(report)
    verdict = report["verdict"]
    word = verdict.get("word") or ("all passed" if verdict["holds"] else "FAILED")
    section.paragraph(f"Result: **{word}**, after {report['requests']:,} requests.")
    section.table(
        ("check", "measured", "limit", "result"),
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
    section.bullets([f"fault: {fault}" for fault in report["faults"][:10]])
    traffic = sorted(report["actions"].items(), key=lambda item: -item[1])
    outcomes = sorted(report["outcomes"].items(), key=lambda item: -item[1])
    section.table(("action", "count"), [(name, f"{count:,}") for name, count in traffic])
    section.table(("outcome of answers", "count"), [(name, f"{count:,}") for name, count in outcomes])
    if samples := report["samples"]:
        points = [(sample["requests"], sample["rss"] / 2**20) for sample in samples]
        series = [Series("resident memory", points, COLOURS[0])]
        x, y = Axis("requests so far"), Axis("resident memory, MiB")
        section.plot("memory", line_chart("Memory of the server", x, y, series, style="steps"))
