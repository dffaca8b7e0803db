"""Results as a self-contained HTML page: no scripts, no external files."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from aiochatstream.bench import exports, plots, table
from aiochatstream.bench.charts import Chart
from aiochatstream.bench.load import LoadRun
from aiochatstream.bench.metrics import RunSummary, summarize
from aiochatstream.bench.plan import Plan

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1300px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.2em; margin-top: 2em; border-top: 1px solid #8886;
  padding-top: 1em }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 1em; margin-top: 1em;
  align-items: start }
img { width: 100%; height: auto; border: 1px solid #8886 }
table { border-collapse: collapse; margin: .6em 2em .6em 0; font-size: 14px }
th { text-align: left; font-weight: 600 } th, td { padding: 2px 12px 2px 0; border-bottom: 1px solid #8884;
  vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; padding-left: 12px }
.pair { display: flex; flex-wrap: wrap; align-items: flex-start }
.note { color: light-dark(#a33, #f99) } .quiet { opacity: .7 }
"""


def page(plan: Plan, runs: Sequence[LoadRun]) -> str:
    """Return the report as HTML. Raise MissingExtra if matplotlib is missing."""
    summaries = [summarize(run) for run in runs]
    names = [table.run_name(summary) for summary in summaries]
    sections = []
    if len(summaries) > 1:
        sections.append("<h2>All runs</h2>" + _overview(summaries) + _images(plots.sweep_plots(summaries)))
    if runs:
        sections.append("<h2>Distributions</h2>" + _images(plots.distribution_plots(runs, names)))
    for run, summary, name in zip(runs, summaries, names, strict=True):
        sections.append(f"<h2>{escape(name)}</h2>{_figures(summary, plan)}{_images(plots.course_plots(run))}")
    sections.append(_setup(plan))
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/><title>LoadRun test</title>'
        f"<style>{STYLE}</style></head><body><h1>LoadRun test of {escape(plan.url)}</h1>"
        f'<p class="quiet">protocol {escape(plan.protocol)}, {now}</p>{"".join(sections)}</body></html>\n'
    )


def _overview(summaries: Sequence[RunSummary]) -> str:
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
            table.run_name(summary),
            *(str(number) for number in (summary.completed, summary.refused, summary.failed)),
            f"{summary.requests_per_s:.3f}",
            f"{summary.tokens_per_s:.1f}",
            table.milliseconds(table.figure(summary.ttft_s, "p50")),
            table.milliseconds(table.figure(summary.tpot_s, "p50")),
            table.milliseconds(table.figure(summary.e2e_s, "p95")),
        ]
        for summary in summaries
    ]
    return _table(rows, heads)


def _figures(summary: RunSummary, plan: Plan) -> str:
    latencies = [[name, *table.cells(figures)] for name, figures in table.latencies(summary)]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes(summary))
    return (
        f'<div class="pair">{_table(table.facts(summary, plan))}'
        f"{_table(latencies, ['milliseconds', 'mean', 'p50', 'p90', 'p95', 'p99'])}</div>{notes}"
    )


def _setup(plan: Plan) -> str:
    parameters = [(name, str(value)) for name, value in exports.parameters(plan).items() if name != "headers"]
    environment = [(name, str(value)) for name, value in exports.environment().items()]
    return (
        f'<h2>Parameters and environment</h2><div class="pair">{_table(parameters)}{_table(environment)}</div>'
        '<p class="quiet"><code>aiochatstream bench --help</code> defines the metrics.</p>'
    )


def _table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    number = ' class="n"' if heads else ""
    head = "".join(f"<th{number if column else ''}>{escape(name)}</th>" for column, name in enumerate(heads))
    body = "".join(
        f"<tr><th>{escape(name)}</th>" + "".join(f"<td{number}>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for name, *cells in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if heads else ''}{body}</table>"


def _images(charts: Sequence[Chart]) -> str:
    images = "".join(
        f'<img alt="{escape(chart.title)}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(chart.svg.encode()).decode()}"/>'
        for chart in charts
    )
    return f'<div class="plots">{images}</div>'
