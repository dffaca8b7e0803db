"""The results in the terminal."""

from __future__ import annotations

from aiochatstream.bench.metrics import Distribution, Summary
from aiochatstream.bench.plan import Plan
from aiochatstream.terminal import one_line

BUSY_GENERATOR = 0.7
"""Share of a core from which on the generator itself may be the limit."""

TOKEN_SOURCES = {
    "server": "counted by the server",
    "tokenizer": "counted with --tokenizer",
    "pieces": "not told by the server: each piece of text counts as one token (--tokenizer counts them)",
    "mixed": "told by the server for some answers only; the others are counted here",
}


def level(summary: Summary) -> str:
    """What load the run was."""
    if summary.concurrency is None:
        return f"rate {summary.rate:g}/s"
    return f"concurrency {summary.concurrency}"


def latencies(summary: Summary) -> list[tuple[str, Distribution]]:
    """The name of each latency that is known, and its figures in seconds."""
    named = {
        "TTFT": summary.ttft_s,
        "TPOT": summary.tpot_s,
        "ITL": summary.itl_s,
        "E2E": summary.e2e_s,
        "queue": summary.queue_s,
        "refused after": summary.refused_s,
        "sent late by": summary.late_s,
    }
    return [(name, distribution) for name, distribution in named.items() if distribution is not None]


def facts(summary: Summary, plan: Plan) -> list[tuple[str, str]]:
    """The figures that are no latencies."""
    outcomes = f"{summary.completed} completed, {summary.refused} refused, {summary.failed} failed"
    if plan.abort_fraction:
        outcomes += f", {summary.aborted} hung up"
    if plan.slow_readers:
        outcomes += f"; {summary.slow} of the completed read slowly"
    if summary.unfinished:
        outcomes += f"; {summary.unfinished} under way when interrupted, not counted"
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
        cached = "" if summary.cached_tokens is None else f", {summary.cached_tokens} of them from a cache"
        rows.append(("prompt tokens", f"{summary.prompt_tokens}{cached}"))
    if summary.bytes_per_token is not None:
        rows.append(("bytes/token", f"{summary.bytes_per_token:.1f}"))
    rows.append(("generator", f"{summary.generator_cpu:.1%} of a core"))
    return rows


def notes(summary: Summary) -> list[str]:
    """What the reader has to know besides: why requests were not completed, and a generator that was too busy."""
    lines = [f"{count} x {one_line(reason)}" for reason, count in summary.reasons.items()]
    if summary.generator_cpu > BUSY_GENERATOR:
        lines.append(
            f"WARNING: the load generator took {summary.generator_cpu:.0%} of a core and may be the limit itself: "
            "share the load among several of them."
        )
    return lines


def render(summary: Summary, plan: Plan) -> str:
    """One run as text."""
    lines = [f"{level(summary)}, {plan.protocol}, {plan.url}"]
    lines += [f"  {name:<14} {value}" for name, value in facts(summary, plan)]
    if measured := latencies(summary):
        lines.append("  " + f"{'milliseconds':<14}" + "".join(f"{name:>11}" for name in ("mean", *_PERCENTILES)))
        lines += [f"  {name:<14}" + "".join(f"{value:>11}" for value in cells(figures)) for name, figures in measured]
    lines += [f"  {note}" for note in notes(summary)]
    return "\n".join(lines)


def render_sweep(summaries: list[Summary]) -> str:
    """All runs of a sweep, a line each."""
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
            milliseconds(known(summary.ttft_s, "p50")),
            milliseconds(known(summary.tpot_s, "p50")),
            milliseconds(known(summary.e2e_s, "p95")),
        )
        lines.append("  ".join(f"{cell:>11}" for cell in row))
    return "\n".join(lines)


def cells(figures: Distribution) -> list[str]:
    """Mean and percentiles in milliseconds."""
    return [milliseconds(known(figures, name)) for name in ("mean", *_PERCENTILES)]


def known(figures: Distribution | None, name: str) -> float | None:
    """One of the figures, in seconds; None where there are none."""
    return None if figures is None else float(getattr(figures, name))


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds; a dash for None."""
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


_PERCENTILES = ("p50", "p90", "p95", "p99")
