"""Figures of a run, computed from its records. ``aiochatstream bench --help`` defines them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, quantiles

from aiochatstream.bench.load import LoadRun
from aiochatstream.bench.request import RequestRecord


@dataclass(frozen=True)
class Distribution:
    """Mean and percentiles of some values, in the unit of the values."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Distribution | None:
        """Return the distribution of the values that are not None; None if there are no values.

        Percentiles are interpolated linearly between ranks.
        """
        known = [value for value in values if value is not None]
        if not known:
            return None
        cuts = quantiles(known, n=100, method="inclusive") if len(known) > 1 else known * 99
        return cls(len(known), fmean(known), cuts[49], cuts[89], cuts[94], cuts[98])


@dataclass(frozen=True)
class RunSummary:
    """Figures of one run. Times in seconds, rates per second; None for unknown figures.

    concurrency, rate: the load, as one of the two.
    slow: completed requests of slow readers, which ``completed`` includes.
    unfinished: requests that were running when the run was interrupted; no other figure includes them.
    generator_cpu: share of one core that the load generator used.
    token_source: source of the token counts: server, tokenizer, pieces or mixed.
    """

    concurrency: int | None
    rate: float | None
    seconds: float
    requests: int
    completed: int
    slow: int
    aborted: int
    refused: int
    failed: int
    unfinished: int
    reasons: dict[str, int]
    requests_per_s: float
    tokens_per_s: float
    goodput_per_s: float | None
    output_tokens: int
    prompt_tokens: int | None
    cached_tokens: int | None
    token_source: str
    bytes_per_token: float | None
    generator_cpu: float
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    itl_s: Distribution | None
    e2e_s: Distribution | None
    queue_s: Distribution | None
    refused_s: Distribution | None
    late_s: Distribution | None


def summarize(run: LoadRun) -> RunSummary:
    """Return the figures of ``run``, which may still be running."""
    plan, records = run.target.plan, run.records
    completed = [record for record in records if record.outcome == "completed"]
    timed = [record for record in completed if record.kind != "slow"]
    refused = [record for record in records if record.outcome == "refused"]
    seconds = run.end - run.start
    tokens = sum(record.tokens or 0 for record in completed)
    good = [record for record in timed if meets_goodput(record, plan.goodput)]
    return RunSummary(
        concurrency=run.concurrency,
        rate=plan.rate,
        seconds=seconds,
        requests=len(records),
        completed=len(completed),
        slow=len(completed) - len(timed),
        aborted=sum(record.outcome == "aborted" for record in records),
        refused=len(refused),
        failed=sum(record.outcome == "failed" for record in records),
        unfinished=run.unfinished,
        reasons=dict(Counter(record.reason for record in records if record.reason).most_common()),
        requests_per_s=_ratio(len(completed), seconds) or 0.0,
        tokens_per_s=_ratio(tokens, seconds) or 0.0,
        goodput_per_s=(_ratio(len(good), seconds) or 0.0) if plan.goodput else None,
        output_tokens=tokens,
        prompt_tokens=_total(record.stats.prompt_tokens for record in completed),
        cached_tokens=_total(record.stats.cached_tokens for record in completed),
        token_source=_token_source(completed, with_tokenizer=plan.tokenizer is not None),
        bytes_per_token=_ratio(sum(record.wire_bytes for record in completed), tokens),
        generator_cpu=_ratio(run.cpu_s, seconds) or 0.0,
        ttft_s=Distribution.of(record.ttft for record in timed),
        tpot_s=Distribution.of(record.tpot for record in timed),
        itl_s=Distribution.of(gap for record in timed for gap in record.gaps),
        e2e_s=Distribution.of(record.e2e for record in timed),
        queue_s=Distribution.of(record.stats.queue_s for record in timed),
        refused_s=Distribution.of(record.e2e for record in refused),
        late_s=Distribution.of(record.lateness for record in records) if run.concurrency is None else None,
    )


def meets_goodput(record: RequestRecord, goodput: Iterable[tuple[str, float]]) -> bool:
    """Return whether ``record`` meets all limits, in milliseconds. A missing value meets its limit."""
    values = {"ttft": record.ttft, "tpot": record.tpot, "e2e": record.e2e}
    return all((values[name] or 0.0) * 1000 <= limit for name, limit in goodput)


def _ratio(amount: float, per: float) -> float | None:
    return amount / per if per > 0 else None


def _total(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _token_source(completed: list[RequestRecord], *, with_tokenizer: bool) -> str:
    reported = {record.stats.completion_tokens is not None for record in completed}
    if reported == {True}:
        return "server"
    if reported == {True, False}:
        return "mixed"
    return "tokenizer" if with_tokenizer else "pieces"
