"""The results as one page that needs nothing else: no script, no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from aiochatstream.bench import exports, plots, table
from aiochatstream.bench.load import Load
from aiochatstream.bench.metrics import Summary, summarize
from aiochatstream.bench.plan import Plan

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 1300px; margin: 2em auto;
  padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.2em; margin-top: 2em; border-top: 1px solid #ccc;
  padding-top: 1em }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 1em; margin-top: 1em }
svg { width: 100%; height: auto; border: 1px solid #ddd }
table { border-collapse: collapse; margin: .6em 2em .6em 0; font-size: 14px }
th { text-align: left; font-weight: 600 } th, td { padding: 2px 12px 2px 0; border-bottom: 1px solid #eee;
  vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; padding-left: 12px }
.pair { display: flex; flex-wrap: wrap; align-items: flex-start } .note { color: #a33 } .quiet { color: #666 }
"""


def page(plan: Plan, loads: Sequence[Load]) -> str:
    """The whole report as HTML."""
    summaries = [summarize(load) for load in loads]
    runs = plots.names(summaries)
    sections = []
    if len(summaries) > 1:
        sections.append("<h2>All runs</h2>" + _overview(summaries) + _plots(plots.of_sweep(summaries)))
    if loads:
        sections.append("<h2>Distributions</h2>" + _plots(plots.of_distributions(loads, runs)))
    for load, summary, name in zip(loads, summaries, runs, strict=True):
        sections.append(f"<h2>{escape(name)}</h2>{_run(summary, plan)}{_plots(plots.over_time(load))}")
    sections.append(_circumstances(plan))
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/><title>Load test</title>'
        f"<style>{STYLE}</style></head><body><h1>Load test of {escape(plan.url)}</h1>"
        f'<p class="quiet">protocol {escape(plan.protocol)}, {now}</p>{"".join(sections)}</body></html>\n'
    )


def _overview(summaries: Sequence[Summary]) -> str:
    heads = [
        "run",
        "completed",
        "refused",
        "failed",
        "requests/s",
        "tokens/s",
        "TTFT p50, ms",
        "TPOT p50, ms",
        "E2E p95, ms",
    ]
    rows = [
        [
            table.level(summary),
            *(str(number) for number in (summary.completed, summary.refused, summary.failed)),
            f"{summary.requests_per_s:.3f}",
            f"{summary.tokens_per_s:.1f}",
            table.milliseconds(table.known(summary.ttft_s, "p50")),
            table.milliseconds(table.known(summary.tpot_s, "p50")),
            table.milliseconds(table.known(summary.e2e_s, "p95")),
        ]
        for summary in summaries
    ]
    return _table(rows, heads)


def _run(summary: Summary, plan: Plan) -> str:
    latencies = [[name, *table.cells(figures)] for name, figures in table.latencies(summary)]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes(summary))
    return (
        f'<div class="pair">{_table(table.facts(summary, plan))}'
        f"{_table(latencies, ['milliseconds', 'mean', 'p50', 'p90', 'p95', 'p99'])}</div>{notes}"
    )


def _circumstances(plan: Plan) -> str:
    parameters = [(name, str(value)) for name, value in exports.parameters(plan).items() if name != "headers"]
    surroundings = [(name, str(value)) for name, value in exports.environment().items()]
    return (
        f'<h2>How it was measured</h2><div class="pair">{_table(parameters)}{_table(surroundings)}</div>'
        '<p class="quiet">The definitions of the metrics are in <code>aiochatstream bench --help</code>.</p>'
    )


def _table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    number = ' class="n"' if heads else ""
    head = "".join(f"<th{number if place else ''}>{escape(name)}</th>" for place, name in enumerate(heads))
    body = "".join(
        f"<tr><th>{escape(name)}</th>" + "".join(f"<td{number}>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for name, *cells in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if heads else ''}{body}</table>"


def _plots(drawn: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(drawn)}</div>'
