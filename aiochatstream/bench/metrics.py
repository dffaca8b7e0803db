"""From the records of a run to its figures. The definitions are stated in ``aiochatstream bench --help``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, quantiles

from aiochatstream.bench.load import Load
from aiochatstream.bench.request import Record


@dataclass(frozen=True)
class Distribution:
    """Figures of many values, in the values' unit."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Distribution | None:
        """Of the values that are not None; None where there are none. Linear interpolation between ranks."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        cuts = quantiles(known, n=100, method="inclusive") if len(known) > 1 else known * 99
        return cls(len(known), fmean(known), cuts[49], cuts[89], cuts[94], cuts[98])


@dataclass(frozen=True)
class Summary:
    """One run in figures. Times in seconds, rates per second; None where nothing is known.

    concurrency, rate: one of them, as the load was.
    slow: completed requests of slow readers; they are in ``completed``, too.
    unfinished: under way when the run was interrupted; counted nowhere else.
    generator_cpu: share of one core that the load generator itself took.
    token_source: who counted the tokens: server, tokenizer, pieces or mixed.
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


def summarize(load: Load) -> Summary:
    """The figures of ``load``, as far as it has come."""
    plan, records = load.target.plan, load.records
    completed = [record for record in records if record.outcome == "completed"]
    timed = [record for record in completed if record.kind != "slow"]
    refused = [record for record in records if record.outcome == "refused"]
    seconds = load.ended - load.started
    tokens = sum(record.tokens or 0 for record in completed)
    good = [record for record in timed if keeps(record, plan.goodput)]
    return Summary(
        concurrency=load.concurrency,
        rate=plan.rate,
        seconds=seconds,
        requests=len(records),
        completed=len(completed),
        slow=len(completed) - len(timed),
        aborted=sum(record.outcome == "aborted" for record in records),
        refused=len(refused),
        failed=sum(record.outcome == "failed" for record in records),
        unfinished=load.unfinished,
        reasons=dict(Counter(record.reason for record in records if record.reason).most_common()),
        requests_per_s=_ratio(len(completed), seconds) or 0.0,
        tokens_per_s=_ratio(tokens, seconds) or 0.0,
        goodput_per_s=(_ratio(len(good), seconds) or 0.0) if plan.goodput else None,
        output_tokens=tokens,
        prompt_tokens=_total(record.told.prompt_tokens for record in completed),
        cached_tokens=_total(record.told.cached_tokens for record in completed),
        token_source=_token_source(completed, with_tokenizer=plan.tokenizer is not None),
        bytes_per_token=_ratio(sum(record.wire_bytes for record in completed), tokens),
        generator_cpu=_ratio(load.cpu_s, seconds) or 0.0,
        ttft_s=Distribution.of(record.ttft for record in timed),
        tpot_s=Distribution.of(record.tpot for record in timed),
        itl_s=Distribution.of(gap for record in timed for gap in record.gaps),
        e2e_s=Distribution.of(record.e2e for record in timed),
        queue_s=Distribution.of(record.told.queue_s for record in timed),
        refused_s=Distribution.of(record.e2e for record in refused),
        late_s=Distribution.of(record.late for record in records) if load.concurrency is None else None,
    )


def keeps(record: Record, goodput: Iterable[tuple[str, float]]) -> bool:
    """Whether ``record`` keeps every limit (milliseconds). A value that it does not have breaks none."""
    values = {"ttft": record.ttft, "tpot": record.tpot, "e2e": record.e2e}
    return all((values[name] or 0.0) * 1000 <= limit for name, limit in goodput)


def _ratio(amount: float, per: float) -> float | None:
    return amount / per if per > 0 else None


def _total(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _token_source(completed: list[Record], *, with_tokenizer: bool) -> str:
    told = {record.told.completion_tokens is not None for record in completed}
    otherwise = "tokenizer" if with_tokenizer else "pieces"
    return "mixed" if len(told) == 2 else "server" if told == {True} else otherwise
