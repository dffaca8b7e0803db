"""bench/compare.py's results: the same load on several servers."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from aiochatstream.bench.svg import COLOURS, Axis, Series, chart
from aiochatstream.bench.table import BUSY_GENERATOR
from page.section import Report, Section, cell, middle, pairs, spread

TITLE = "Beside other servers"

Round = dict[str, Any]
Figure = Callable[[Round], float | None]


def rate(one: Round) -> float | None:
    return one["output_tokens_per_s"] if one["ok"] else None


def milliseconds(metric: str, name: str) -> Figure:
    def figure(one: Round) -> float | None:
        value = (one[metric] or {}).get(name)
        return None if value is None else value * 1000

    return figure


PLOTS: dict[str, tuple[str, str, Figure]] = {
    "throughput": ("Output tokens per second", "output tokens per second, all users", rate),
    "ttft-p50": ("Time to first token, p50", "TTFT p50, milliseconds (log)", milliseconds("ttft_s", "p50")),
    "ttft-p99": ("Time to first token, p99", "TTFT p99, milliseconds (log)", milliseconds("ttft_s", "p99")),
    "tpot-p50": ("Time per output token, p50", "TPOT p50, milliseconds (log)", milliseconds("tpot_s", "p50")),
    "itl-p50": ("Gaps between pieces of text, p50", "ITL p50, milliseconds", milliseconds("itl_s", "p50")),
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
"""The names of the ratios' metrics. One that is not here is shown as it is."""


def write(section: Section, report: Report) -> None:
    names = {server["name"]: server["title"] for server in report["servers"]}
    measured = [server for server in report["servers"] if server["measured"]]
    section.say(
        "The same closed loop of users on each server, the servers in turn, round by round. Each figure is the "
        "median of the rounds, in parentheses (and as whiskers in the plots) the least and the most of them."
    )
    section.circumstances(report)
    _servers(section, report)
    section.points([cell(remark) for remark in report.get("remarks", [])])
    rounds = report["rounds"]
    if not rounds:
        section.say("No round was completed.")
        return
    for kind, (title, unit, figure) in PLOTS.items():
        section.picture(kind, title, _plot(title, unit, figure, measured, rounds))
    _figures(section, names, rounds)
    _ratios(section, names, report["ratios"])


def _servers(section: Section, report: Report) -> None:
    for server in report["servers"]:
        versions = pairs(server["versions"] or {})
        told = ", ".join(filter(None, [f"protocol {server['protocol']}", versions]))
        title = f"**{cell(server['title'])}** ({told})"
        if not server["measured"]:
            section.say(f"{title}: not measured. {cell(server['reason'] or '')}".rstrip())
            continue
        section.say(f"{title}{': ' if server['note'] else ''}{cell(server['note'] or '')}")
        if server["command"]:
            section.code(server["command"])
        faults = [f"{count} x {reason}" for reason, count in server.get("faults", {}).items()]
        ended = [f"not measured further: {server['reason']}"] if server["reason"] else []
        section.points([cell(line) for line in [*ended, *faults]])


def _plot(title: str, unit: str, figure: Figure, servers: list[dict[str, Any]], rounds: list[Round]) -> str:
    levels = sorted({one["concurrency"] for one in rounds})
    log = "(log)" in unit
    series = []
    for server, colour in zip(servers, COLOURS * len(servers), strict=False):
        points, whiskers = [], []
        for level in levels:
            values = [value for one in at(rounds, server["name"], level) if (value := figure(one)) is not None]
            if values and (min(values) > 0 or not log):
                points.append((level, median(values)))
                whiskers.append((min(values), max(values)))
        series.append(Series(server["title"], points, colour, whiskers=whiskers))
    drawn = [value for one in series for ends in one.whiskers for value in ends]
    x = Axis("users at a time (concurrency, log)", levels, log=True)
    return chart(title, x, (Axis.powers if log else Axis.over)(unit, drawn), series)


def _figures(section: Section, names: dict[str, str], rounds: list[Round]) -> None:
    rows = []
    for level in sorted({one["concurrency"] for one in rounds}):
        for name, title in names.items():
            if not (here := at(rounds, name, level)):
                continue
            times = [
                middle([milliseconds(metric, rank)(one) for one in here])
                for metric, rank in (
                    ("ttft_s", "p50"),
                    ("ttft_s", "p99"),
                    ("tpot_s", "p50"),
                    ("itl_s", "p50"),
                    ("e2e_s", "p50"),
                )
            ]
            rates = (spread([rate(one) for one in here]), middle([one["requests_per_s"] for one in here], 2))
            tokens = middle([one["answer_tokens_mean"] for one in here])
            rows.append((title, str(level), *rates, *times, tokens, _count(here), _lost(here)))
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
    busiest = max((one["client_cpu"] or 0.0 for one in rounds), default=0.0)
    warning = ": **it may be the limit itself**" if busiest > BUSY_GENERATOR else ""
    section.say(f"The load generator took at most {busiest:.0%} of a core{warning}.")


def _count(rounds: list[Round]) -> str:
    cut = sum(bool(one.get("cut")) for one in rounds)
    return f"{len(rounds)} ({cut} cut)" if cut else str(len(rounds))


def _lost(rounds: list[Round]) -> str:
    """Requests without a whole answer, of all rounds together; nothing where there were none."""
    asked, ok, refused, failed = (sum(one[kind] for one in rounds) for kind in ("requests", "ok", "refused", "failed"))
    lost = {"refused": refused, "failed": failed, "unfinished": asked - ok - refused - failed}
    told = ", ".join(f"{count} {kind}" for kind, count in lost.items() if count)
    return f"{told} of {asked}" if told else ""


def _ratios(section: Section, names: dict[str, str], ratios: list[dict[str, Any]]) -> None:
    if not ratios:
        return
    section.say(
        "Ratios, pair by pair: each round of a server over the same round of the baseline. Above 1, a rate is better "
        "than the baseline's and a time is worse."
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


def at(rounds: list[Round], server: str, level: int) -> list[Round]:
    return [one for one in rounds if one["server"] == server and one["concurrency"] == level]
