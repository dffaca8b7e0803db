"""Results as text for the terminal."""

from __future__ import annotations

from aiochatstream.bench.metrics import Distribution, RunSummary
from aiochatstream.bench.plan import Plan
from aiochatstream.terminal import one_line

BUSY_GENERATOR = 0.7
"""Share of a core above which the load generator may be the bottleneck."""

TOKEN_SOURCES = {
    "server": "counted by the server",
    "tokenizer": "counted with --tokenizer",
    "pieces": "not reported by the server: each text counts as one token (--tokenizer counts tokens)",
    "mixed": "reported by the server for some answers, counted here for the others",
}


def run_name(summary: RunSummary) -> str:
    """Return the load of the run as its name."""
    if summary.concurrency is None:
        return f"rate {summary.rate:g}/s"
    return f"concurrency {summary.concurrency}"


def latencies(summary: RunSummary) -> list[tuple[str, Distribution]]:
    """Return names and distributions, in seconds, of the known latencies."""
    named = {
        "TTFT": summary.ttft_s,
        "TPOT": summary.tpot_s,
        "ITL": summary.itl_s,
        "E2E": summary.e2e_s,
        "queue": summary.queue_s,
        "refused after": summary.refused_s,
        "lateness": summary.late_s,
    }
    return [(name, distribution) for name, distribution in named.items() if distribution is not None]


def facts(summary: RunSummary, plan: Plan) -> list[tuple[str, str]]:
    """Return names and values of the figures besides latencies."""
    outcomes = f"{summary.completed} completed, {summary.refused} refused, {summary.failed} failed"
    if plan.abort_fraction:
        outcomes += f", {summary.aborted} aborted"
    if plan.slow_readers:
        outcomes += f"; {summary.slow} of the completed by slow readers"
    if summary.unfinished:
        outcomes += f"; {summary.unfinished} running at the interruption, not counted"
    rows = [
        ("requests", outcomes),
        ("time", f"{summary.seconds:.2f} s"),
        ("requests/s", f"{summary.requests_per_s:.3f}"),
        ("tokens/s", f"{summary.tokens_per_s:.1f}"),
    ]
    if summary.goodput_per_s is not None:
        limits = ", ".join(f"{name} {limit:g} ms" for name, limit in plan.goodput)
        rows.append(("goodput", f"{summary.goodput_per_s:.3f} requests/s within {limits}"))
    rows.append(("tokens", f"{summary.output_tokens}, {TOKEN_SOURCES[summary.token_source]}"))
    if summary.prompt_tokens is not None:
        cached = "" if summary.cached_tokens is None else f", {summary.cached_tokens} from a cache"
        rows.append(("prompt tokens", f"{summary.prompt_tokens}{cached}"))
    if summary.bytes_per_token is not None:
        rows.append(("bytes/token", f"{summary.bytes_per_token:.1f}"))
    rows.append(("generator", f"{summary.generator_cpu:.1%} of a core"))
    return rows


def notes(summary: RunSummary) -> list[str]:
    """Return the reasons of incomplete requests, and a warning if the load generator was too busy."""
    lines = [f"{count} x {one_line(reason)}" for reason, count in summary.reasons.items()]
    if summary.generator_cpu > BUSY_GENERATOR:
        lines.append(
            f"WARNING: the load generator used {summary.generator_cpu:.0%} of a core and may be the bottleneck. "
            "Divide the load among several load generators."
        )
    return lines


def render(summary: RunSummary, plan: Plan) -> str:
    """Return one run as text."""
    lines = [f"{run_name(summary)}, {plan.protocol}, {plan.url}"]
    lines += [f"  {name:<14} {value}" for name, value in facts(summary, plan)]
    if rows := latencies(summary):
        lines.append("  " + f"{'milliseconds':<14}" + "".join(f"{name:>11}" for name in ("mean", *_PERCENTILES)))
        lines += [f"  {name:<14}" + "".join(f"{value:>11}" for value in cells(figures)) for name, figures in rows]
    lines += [f"  {note}" for note in notes(summary)]
    return "\n".join(lines)


def render_sweep(summaries: list[RunSummary]) -> str:
    """Return the runs of a sweep as a table."""
    heads = (
        "concurrency",
        "completed",
        "refused",
        "failed",
        "requests/s",
        "tokens/s",
        "TTFT p50",
        "TPOT p50",
        "E2E p95",
    )
    lines = ["  ".join(f"{head:>11}" for head in heads) + "   (milliseconds)"]
    for summary in summaries:
        row = (
            f"{summary.concurrency}",
            f"{summary.completed}",
            f"{summary.refused}",
            f"{summary.failed}",
            f"{summary.requests_per_s:.3f}",
            f"{summary.tokens_per_s:.1f}",
            milliseconds(figure(summary.ttft_s, "p50")),
            milliseconds(figure(summary.tpot_s, "p50")),
            milliseconds(figure(summary.e2e_s, "p95")),
        )
        lines.append("  ".join(f"{cell:>11}" for cell in row))
    return "\n".join(lines)


def cells(figures: Distribution) -> list[str]:
    """Return mean and percentiles in milliseconds, formatted."""
    return [milliseconds(figure(figures, name)) for name in ("mean", *_PERCENTILES)]


def figure(distribution: Distribution | None, name: str) -> float | None:
    """Return the mean or percentile ``name``; None if there is no distribution."""
    return None if distribution is None else float(getattr(distribution, name))


def milliseconds(seconds: float | None) -> str:
    """Format seconds as milliseconds, and None as a dash."""
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


_PERCENTILES = ("p50", "p90", "p95", "p99")
