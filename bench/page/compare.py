"""Section of bench/compare.py: the same load on several servers."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from aiochatstream.bench.charts import COLOURS, Axis, Chart, Series, line_chart
from aiochatstream.bench.table import BUSY_GENERATOR
from page.section import Report, Section, cell, format_median, format_spread, pairs

TITLE = "Comparison with other servers"

Round = dict[str, Any]
Figure = Callable[[Round], float | None]


def output_rate(round_: Round) -> float | None:
    return round_["output_tokens_per_s"] if round_["ok"] else None


def milliseconds(metric: str, name: str) -> Figure:
    def figure(round_: Round) -> float | None:
        value = (round_[metric] or {}).get(name)
        return None if value is None else value * 1000

    return figure


PLOTS: dict[str, tuple[str, str, Figure]] = {
    "throughput": ("Output tokens per second", "output tokens/s, all users", output_rate),
    "ttft-p50": ("Time to first token, p50", "TTFT p50, ms (log)", milliseconds("ttft_s", "p50")),
    "ttft-p99": ("Time to first token, p99", "TTFT p99, ms (log)", milliseconds("ttft_s", "p99")),
    "tpot-p50": ("Time per output token, p50", "TPOT p50, ms (log)", milliseconds("tpot_s", "p50")),
    "itl-p50": ("Gaps between texts, p50", "ITL p50, ms", milliseconds("itl_s", "p50")),
}

METRICS = {
    "output_tokens_per_s": "output tokens/s",
    "requests_per_s": "requests/s",
    "ttft_p50": "TTFT p50",
    "ttft_p99": "TTFT p99",
    "tpot_p50": "TPOT p50",
    "itl_p50": "ITL p50",
    "itl_p99": "ITL p99",
    "e2e_p50": "E2E p50",
}
"""Titles of the metrics in the table of ratios. Other metrics are shown by their own names."""


def write(section: Section, report: Report) -> None:
    names = {server["name"]: server["title"] for server in report["servers"]}
    measured = [server for server in report["servers"] if server["measured"]]
    section.paragraph(
        "The servers take turns with the same closed loop of users, round by round. Each figure is the median of the "
        "rounds, with minimum and maximum in parentheses (in plots, as error bars)."
    )
    section.setup(report)
    _servers(section, report)
    section.bullets([cell(remark) for remark in report.get("remarks", [])])
    rounds = report["rounds"]
    if not rounds:
        section.paragraph("No round was completed.")
        return
    for name, (title, unit, figure) in PLOTS.items():
        section.plot(name, _plot(title, unit, figure, measured, rounds))
    _figures(section, names, rounds)
    _ratios(section, names, report["ratios"])


def _servers(section: Section, report: Report) -> None:
    for server in report["servers"]:
        versions = pairs(server["versions"] or {})
        details = ", ".join(filter(None, [f"protocol {server['protocol']}", versions]))
        title = f"**{cell(server['title'])}** ({details})"
        if not server["measured"]:
            section.paragraph(f"{title}: not measured. {cell(server['reason'] or '')}".rstrip())
            continue
        section.paragraph(f"{title}{': ' if server['note'] else ''}{cell(server['note'] or '')}")
        if server["command"]:
            section.command(server["command"])
        faults = [f"{count} x {reason}" for reason, count in server.get("faults", {}).items()]
        reasons = [f"not measured further: {server['reason']}"] if server["reason"] else []
        section.bullets([cell(line) for line in [*reasons, *faults]])


def _plot(title: str, unit: str, figure: Figure, servers: list[dict[str, Any]], rounds: list[Round]) -> Chart:
    levels = sorted({round_["concurrency"] for round_ in rounds})
    log = "(log)" in unit
    series = []
    for server, colour in zip(servers, COLOURS * len(servers), strict=False):
        points, ranges = [], []
        for level in levels:
            selected = select(rounds, server["name"], level)
            values = [value for round_ in selected if (value := figure(round_)) is not None]
            if values and (min(values) > 0 or not log):
                points.append((level, median(values)))
                ranges.append((min(values), max(values)))
        series.append(Series(server["title"], points, colour, ranges))
    x = Axis("concurrent users (log)", log=True, ticks=levels)
    return line_chart(title, x, Axis(unit, log=log), series)


def _figures(section: Section, names: dict[str, str], rounds: list[Round]) -> None:
    rows = []
    for level in sorted({round_["concurrency"] for round_ in rounds}):
        for name, title in names.items():
            if not (selected := select(rounds, name, level)):
                continue
            times = [
                format_median([milliseconds(metric, rank)(round_) for round_ in selected])
                for metric, rank in (
                    ("ttft_s", "p50"),
                    ("ttft_s", "p99"),
                    ("tpot_s", "p50"),
                    ("itl_s", "p50"),
                    ("e2e_s", "p50"),
                )
            ]
            rates = (
                format_spread([output_rate(round_) for round_ in selected]),
                format_median([round_["requests_per_s"] for round_ in selected], 2),
            )
            tokens = format_median([round_["answer_tokens_mean"] for round_ in selected])
            rows.append((title, str(level), *rates, *times, tokens, _count(selected), _lost(selected)))
    section.table(
        (
            "server",
            "users",
            "output tokens/s",
            "requests/s",
            "TTFT p50, ms",
            "TTFT p99, ms",
            "TPOT p50, ms",
            "ITL p50, ms",
            "E2E p50, ms",
            "tokens per answer",
            "rounds",
            "not answered",
        ),
        rows,
    )
    busiest = max((round_["client_cpu"] or 0.0 for round_ in rounds), default=0.0)
    warning = ": **it may be the bottleneck**" if busiest > BUSY_GENERATOR else ""
    section.paragraph(f"The load generator used at most {busiest:.0%} of a core{warning}.")


def _count(rounds: list[Round]) -> str:
    cut = sum(bool(round_.get("cut")) for round_ in rounds)
    return f"{len(rounds)} ({cut} cut short)" if cut else str(len(rounds))


def _lost(rounds: list[Round]) -> str:
    """Return the number of requests of all rounds without a complete answer; empty if there are none."""
    requests, ok, refused, failed = (
        sum(round_[outcome] for round_ in rounds) for outcome in ("requests", "ok", "refused", "failed")
    )
    lost = {"refused": refused, "failed": failed, "unfinished": requests - ok - refused - failed}
    counts = ", ".join(f"{count} {outcome}" for outcome, count in lost.items() if count)
    return f"{counts} of {requests}" if counts else ""


def _ratios(section: Section, names: dict[str, str], ratios: list[dict[str, Any]]) -> None:
    if not ratios:
        return
    section.paragraph(
        "Ratios, pair by pair: each round of a server divided by the same round of the baseline. Above 1, a rate is "
        "better than the baseline's, a time is worse."
    )
    metrics = list(dict.fromkeys(ratio["metric"] for ratio in ratios))
    rows: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for ratio in ratios:
        rows.setdefault((ratio["server"], ratio["baseline"], ratio["concurrency"]), {})[ratio["metric"]] = ratio
    section.table(
        ("server / baseline", "users", *(METRICS.get(metric, metric) for metric in metrics), "pairs"),
        [
            (
                f"{names[server]} / {names[baseline]}",
                str(level),
                *(_ratio(row.get(metric)) for metric in metrics),
                str(max(len(ratio["pairs"]) for ratio in row.values())),
            )
            for (server, baseline, level), row in rows.items()
        ],
    )


def _ratio(ratio: dict[str, Any] | None) -> str:
    if ratio is None or ratio["median"] is None:
        return "-"
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def select(rounds: list[Round], server: str, level: int) -> list[Round]:
    return [round_ for round_ in rounds if round_["server"] == server and round_["concurrency"] == level]
