"""Metrics and plots of a load test, against figures computed by hand."""

from __future__ import annotations

from aiochatstream.bench import plots, table
from aiochatstream.bench.metrics import Distribution, meets_goodput, summarize
from aiochatstream.bench.request import RequestRecord
from aiochatstream.bench.tokens import set_token_counts
from tests.bench.events import delta, done
from tests.bench.scripted_server import Exchange, answer, measure, plan, scripted


def completed(*arrivals: float, end: float, tokens: int | None = None, text: str = "") -> RequestRecord:
    """Return the record of a completed request that was sent at 0."""
    return RequestRecord(0, 1, 1, outcome="completed", arrivals=list(arrivals), end=end, tokens=tokens, text=text)


def test_percentiles_interpolate_between_the_nearest_values() -> None:
    figures = Distribution.of([5.0, None, 1.0, 3.0, 2.0, 4.0])
    assert figures is not None
    assert figures == Distribution(5, 3.0, 3.0, 4.6, 4.8, 4.96)
    assert Distribution.of([2.5]) == Distribution(1, 2.5, 2.5, 2.5, 2.5, 2.5)
    assert Distribution.of([None]) is None


def test_tpot_is_the_time_after_the_first_token_per_further_token() -> None:
    assert completed(2.0, 3.0, end=5.0, tokens=4).tpot == 1.0  # (5 - 2) / (4 - 1), however many texts
    assert completed(2.0, end=5.0, tokens=1).tpot is None
    assert completed(end=5.0, tokens=0).tpot is None


def test_goodput_requires_all_limits_met() -> None:
    request = completed(0.5, end=2.5, tokens=5)  # TTFT 500 ms, TPOT 500 ms, E2E 2500 ms
    assert meets_goodput(request, [("ttft", 500), ("tpot", 500), ("e2e", 2500)])
    assert not meets_goodput(request, [("ttft", 499)])
    assert not meets_goodput(request, [("ttft", 500), ("tpot", 499)])
    assert meets_goodput(completed(0.5, end=0.5, tokens=1), [("tpot", 1)])  # one token has no TPOT


async def timed(exchange: Exchange) -> None:
    """Answer request n with a first text after n seconds, then n gaps of 0.5 s. The probe is request 0."""
    await exchange.open()
    await exchange.send(delta("a"), after=float(exchange.number))
    for _ in range(exchange.number):
        await exchange.send(delta("b"), after=0.5)
    await exchange.send(done(exchange.number + 1))


async def test_figures_of_a_run() -> None:
    async with scripted(timed) as server:
        run = await measure(server, requests=3, goodput=(("ttft", 2000.0), ("tpot", 500.0)))
        server.time.cpu = 1.0
    summary = summarize(run)
    assert (summary.requests, summary.completed, summary.refused, summary.failed) == (3, 3, 0, 0)
    assert summary.ttft_s == Distribution.of([1, 2, 3])
    assert summary.tpot_s == Distribution.of([0.5, 0.5, 0.5])
    assert summary.itl_s == Distribution.of([0.5] * 6)
    assert summary.e2e_s == Distribution.of([1.5, 3.0, 4.5])
    assert summary.seconds == 9.0
    assert summary.requests_per_s == 3 / 9
    assert summary.tokens_per_s == (2 + 3 + 4) / 9
    assert summary.goodput_per_s == 2 / 9  # the third TTFT is 3 s
    assert (summary.prompt_tokens, summary.cached_tokens) == (30, 12)
    assert summary.late_s is None


async def test_a_busy_load_generator_is_warned_about() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.time.seconds += 1.0
        exchange.time.cpu += 0.75
        await answer(exchange)

    async with scripted(script) as server:
        summary = summarize(await measure(server, requests=4))
    assert summary.generator_cpu == 0.75
    assert "WARNING: the load generator used 75% of a core" in table.render(summary, plan("http://127.0.0.1"))


async def test_a_less_busy_load_generator_is_not_warned_about() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.time.seconds += 1.0
        exchange.time.cpu += 0.7
        await answer(exchange)

    async with scripted(script) as server:
        summary = summarize(await measure(server, requests=4))
    assert "WARNING" not in table.render(summary, plan("http://127.0.0.1"))


def test_tokens_are_counted_by_the_server_else_by_a_tokenizer_else_by_texts() -> None:
    reported, tokenized = completed(1.0, end=2.0), completed(1.0, 1.5, end=2.0, text="a b c")
    by_texts = completed(1.0, 1.5, end=2.0)
    reported.stats.completion_tokens = 9
    set_token_counts([reported, tokenized], lambda text: len(text.split()))
    set_token_counts([by_texts], None)
    assert [record.tokens for record in (reported, tokenized, by_texts)] == [9, 3, 2]


def test_a_request_has_phases() -> None:
    request = completed(3.0, 4.0, end=5.0)
    request.stats.queue_s = 2.0
    assert [(start, end) for start, end, _ in plots.phases(request)] == [(0, 2), (2, 3), (3, 5)]
    assert plots.phases(RequestRecord(0, 1, 1, outcome="refused", end=0.5)) == [(0, 0.5, plots.REFUSED)]


def test_cumulative_distribution() -> None:
    assert plots.cumulative([0.002, 0.001]) == [(1.0, 0.0), (1.0, 50.0), (2.0, 100.0), (2.0, 100.0)]
    assert plots.cumulative([]) == []
