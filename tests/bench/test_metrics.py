"""The figures, against numbers computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from aiochatstream.bench import plots, table
from aiochatstream.bench.metrics import Distribution, keeps, summarize
from aiochatstream.bench.request import Record
from aiochatstream.bench.svg import Axis
from aiochatstream.bench.tokens import count
from tests.bench.scripted_server import Exchange, answer, delta, done, measure, plan, scripted


def record(*stamps: float, ended: float, tokens: int | None = None, **values: Any) -> Record:
    """A request that was sent at 0."""
    return Record(0, 1, 1, outcome="completed", stamps=list(stamps), ended=ended, tokens=tokens, **values)


def test_percentiles_interpolate_between_the_nearest_values() -> None:
    figures = Distribution.of([5.0, None, 1.0, 3.0, 2.0, 4.0])
    assert figures is not None
    assert figures == Distribution(5, 3.0, 3.0, 4.6, 4.8, 4.96)
    assert Distribution.of([2.5]) == Distribution(1, 2.5, 2.5, 2.5, 2.5, 2.5)
    assert Distribution.of([None]) is None


def test_tpot_is_the_rest_of_the_time_over_the_rest_of_the_tokens() -> None:
    assert record(2.0, 3.0, ended=5.0, tokens=4).tpot == 1.0  # (5 - 2) / (4 - 1), however many pieces
    assert record(2.0, ended=5.0, tokens=1).tpot is None
    assert record(ended=5.0, tokens=0).tpot is None


def test_goodput_needs_every_limit_kept() -> None:
    request = record(0.5, ended=2.5, tokens=5)  # TTFT 500 ms, TPOT 500 ms, E2E 2500 ms
    assert keeps(request, [("ttft", 500), ("tpot", 500), ("e2e", 2500)])
    assert not keeps(request, [("ttft", 499)])
    assert not keeps(request, [("ttft", 500), ("tpot", 499)])
    assert keeps(record(0.5, ended=0.5, tokens=1), [("tpot", 1)])  # one token has no TPOT


async def timed(exchange: Exchange) -> None:
    """Request n has its first text after n seconds, then n gaps of 0.5 s; the probe (0) at once."""
    await exchange.open()
    await exchange.send(delta("a"), after=float(exchange.number))
    for _ in range(exchange.number):
        await exchange.send(delta("b"), after=0.5)
    await exchange.send(done(exchange.number + 1))


async def test_a_run_in_figures() -> None:
    async with scripted(timed) as server:
        load = await measure(server, requests=3, goodput=(("ttft", 2000.0), ("tpot", 500.0)))
        server.time.cpu = 1.0
    summary = summarize(load)
    assert (summary.requests, summary.completed, summary.refused, summary.failed) == (3, 3, 0, 0)
    assert summary.ttft_s == Distribution.of([1, 2, 3])
    assert summary.tpot_s == Distribution.of([0.5, 0.5, 0.5])
    assert summary.itl_s == Distribution.of([0.5] * 6)
    assert summary.e2e_s == Distribution.of([1.5, 3.0, 4.5])
    assert summary.seconds == 9.0
    assert summary.requests_per_s == 3 / 9
    assert summary.tokens_per_s == (2 + 3 + 4) / 9
    assert summary.goodput_per_s == 2 / 9  # the third one's TTFT is 3 s
    assert (summary.prompt_tokens, summary.cached_tokens) == (30, 12)
    assert summary.late_s is None


async def test_a_generator_that_takes_most_of_a_core_is_warned_of() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.time.seconds += 1.0
        exchange.time.cpu += 0.75
        await answer(exchange)

    async with scripted(script) as server:
        summary = summarize(await measure(server, requests=4))
    assert summary.generator_cpu == 0.75
    assert "WARNING: the load generator took 75% of a core" in table.render(summary, plan("http://127.0.0.1"))


async def test_no_warning_below_that() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.time.seconds += 1.0
        exchange.time.cpu += 0.7
        await answer(exchange)

    async with scripted(script) as server:
        summary = summarize(await measure(server, requests=4))
    assert "WARNING" not in table.render(summary, plan("http://127.0.0.1"))


def test_tokens_are_the_servers_or_counted_or_pieces() -> None:
    told, untold, plain = record(1.0, ended=2.0), record(1.0, 1.5, ended=2.0, text="a b c"), record(1.0, 1.5, ended=2.0)
    told.told.completion_tokens = 9
    count([told, untold], lambda text: len(text.split()))
    count([plain], None)
    assert [one.tokens for one in (told, untold, plain)] == [9, 3, 2]


@pytest.mark.parametrize(("top", "ticks"), [(7.0, [0, 2, 4, 6, 8]), (0.0, [0]), (100.0, [0, 20, 40, 60, 80, 100])])
def test_axes_end_at_round_values(top: float, ticks: list[float]) -> None:
    axis = Axis.over("seconds", [top])
    assert list(axis.ticks)[: len(ticks)] == ticks
    assert axis.place(top) <= 1.0


def test_a_request_is_drawn_in_phases() -> None:
    request = record(3.0, 4.0, ended=5.0)
    request.told.queue_s = 2.0
    assert [(begin, end) for begin, end, _ in plots.phases(request)] == [(0, 2), (2, 3), (3, 5)]
    assert plots.phases(Record(0, 1, 1, outcome="refused", ended=0.5)) == [(0, 0.5, plots.REFUSED)]


def test_cumulative_shares() -> None:
    assert plots.cumulative([0.002, 0.001]) == [(1.0, 0.0), (1.0, 50.0), (2.0, 100.0), (2.0, 100.0)]
    assert plots.cumulative([]) == []


def test_a_logarithmic_axis_lies_between_round_values() -> None:
    assert Axis.powers("", [60, 700]).ticks == pytest.approx([50, 100, 200, 500, 1000])
    assert Axis.powers("", [0.02]).ticks == pytest.approx([0.02, 0.05])
    assert Axis.powers("", [1, 100]).ticks == pytest.approx([1, 2, 5, 10, 20, 50, 100])
    assert Axis.powers("", [10, 1000]).place(100) == pytest.approx(0.5)
