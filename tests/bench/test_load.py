"""Schedules of requests, by the closed and the open loop."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from itertools import islice, pairwise
from statistics import fmean, pstdev
from typing import Any

import pytest
from aiohttp import web

from aiochatstream.bench.command import LoadTest, progress_line
from aiochatstream.bench.load import KindSchedule, LoadRun, RequestBudget, arrival_gaps
from aiochatstream.bench.metrics import summarize
from aiochatstream.bench.prompts import Prompts
from aiochatstream.bench.request import Clock, RequestOutcome, RequestRecord
from tests.bench.events import delta, done
from tests.bench.scripted_server import Exchange, answer, measure, plan, scripted
from tests.helpers import until

OUTCOMES: list[RequestOutcome] = ["completed", "refused"]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_have_the_requested_rate_and_burstiness(burstiness: float) -> None:
    drawn = list(islice(arrival_gaps(5.0, burstiness, random.Random(1)), 50_000))  # noqa: S311
    assert fmean(drawn) == pytest.approx(1 / 5, rel=0.03)
    assert pstdev(drawn) / fmean(drawn) == pytest.approx(burstiness**-0.5, rel=0.03)  # that of a gamma distribution


@pytest.mark.parametrize(("abort", "slow"), [(0, 0), (0.25, 0), (0, 1), (0.5, 0.5), (0.1, 0.3)])
def test_kinds_of_requests_have_exact_proportions(abort: float, slow: float) -> None:
    kinds = KindSchedule(abort, slow)
    drawn = [kinds.next() for _ in range(20)]
    assert (drawn.count("abort"), drawn.count("slow")) == (round(20 * abort), round(20 * slow))


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_the_closed_loop_runs_one_request_per_user(concurrency: int) -> None:
    """The server answers only while all users wait, until each of them has waited once."""
    running, max_running = 0, 0
    condition = asyncio.Condition()

    async def script(exchange: Exchange) -> None:
        nonlocal running, max_running
        running, max_running = running + 1, max(max_running, running + 1)
        async with condition:
            condition.notify_all()
            await condition.wait_for(lambda: max_running >= concurrency or exchange.number == 0)
        running -= 1
        await answer(exchange)

    async with scripted(script) as server:
        run = await measure(server, concurrency=concurrency, requests=9)
    assert max_running == concurrency
    assert len(run.records) == len(server.exchanges) - 1 == 9
    assert len(set(server.prompts)) == 9


async def test_a_cancelled_run_lasts_until_the_cancellation() -> None:
    second_request = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if exchange.number == 1:
            second_request.set()
            await asyncio.Event().wait()
        await answer(exchange, 10)

    async with scripted(script) as server:
        test = LoadTest(plan(server.url, concurrency=1, requests=2), server.time.clock, progress=False)
        task = asyncio.create_task(test.run())
        await second_request.wait()
        server.time.seconds += 100
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    summary = summarize(test.runs[0])
    assert (summary.seconds, summary.unfinished) == (100, 1)


async def test_the_open_loop_sends_on_schedule_whatever_is_running() -> None:
    """The server answers no request before all have arrived."""
    all_arrived = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if exchange.number == 5:
            all_arrived.set()
        if exchange.number:
            await all_arrived.wait()
        await answer(exchange)

    async with scripted(script) as server:
        run = await measure(server, rate=2.0, requests=5, seed=3)
    drawn = list(islice(arrival_gaps(2.0, 1.0, random.Random("3/1")), 4))  # noqa: S311 - the seed, and the first index
    starts = sorted(record.start - run.start for record in run.records)
    assert starts[0] == 0.0
    assert [later - earlier for earlier, later in pairwise(starts)] == pytest.approx(drawn)
    assert summarize(run).rate == 2.0


async def test_the_open_loop_ends_after_its_duration() -> None:
    async with scripted(answer) as server:
        run = await measure(server, rate=10.0, burstiness=1e6, requests=None, duration=0.95)
    assert len(run.records) == 10  # at 0, 0.1, ... 0.9: this shape has nearly constant gaps


async def test_no_request_starts_after_the_duration() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.time.seconds += 1.0
        await answer(exchange)

    async with scripted(script) as server:
        run = await measure(server, requests=None, duration=3.5)
    assert [record.start - run.start for record in run.records] == [0, 1, 2, 3]


class CookieScript:
    """Script that gives each new user a cookie, and counts their requests."""

    def __init__(self) -> None:
        self.turns: dict[str, int] = {}

    async def __call__(self, exchange: Exchange) -> None:
        user = exchange.request.cookies.get("user", f"user{exchange.number}")
        self.turns[user] = self.turns.get(user, 0) + 1
        await exchange.open(**{"Set-Cookie": f"user={user}; HttpOnly; Secure"})
        await exchange.response.write((delta("a") + done(1)).encode())


async def test_turns_belong_to_one_user_and_users_share_no_cookies() -> None:
    script = CookieScript()
    async with scripted(script) as server:
        run = await measure(server, requests=12, turns=3, concurrency=2)
    del script.turns["user0"]  # the probe
    turns: dict[int, list[int]] = {}
    for record in run.records:
        turns.setdefault(record.user, []).append(record.turn)
    assert all(numbers == [1, 2, 3][: len(numbers)] for numbers in turns.values())
    assert sum(len(numbers) == 3 for numbers in turns.values()) >= 3  # --requests may cut two short
    assert sorted(script.turns.values()) == sorted(map(len, turns.values()))


async def test_over_the_openai_protocol_the_client_sends_the_history() -> None:
    async def script(exchange: Exchange) -> None:
        number = exchange.number
        await exchange.open()
        chunk = f'data: {{"choices": [{{"delta": {{"content": "answer {number}"}}, "finish_reason": "stop"}}]}}\n\n'
        await exchange.response.write(chunk.encode())

    async with scripted(script, "/v1/chat/completions") as server:
        await measure(server, protocol="openai", model="m", requests=4, turns=3, prompts="en-short")
    bodies = [exchange.body for exchange in server.exchanges]
    first, second, third, fourth = (body["messages"] for body in bodies[1:])
    assert [len(messages) for messages in (first, second, third, fourth)] == [1, 3, 5, 1]
    assert third[:3] == second
    assert [message["content"] for message in third if message["role"] == "assistant"] == ["answer 1", "answer 2"]
    assert (bodies[0]["model"], bodies[0]["temperature"], bodies[0]["stream"]) == ("m", 0.0, True)


async def test_requests_beyond_a_full_queue_are_refused() -> None:
    """With two places, the server refuses the third user after 0.25 s, then answers the others."""
    refused = asyncio.Event()

    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 3:
            exchange.time.seconds += 0.25
            refused.set()
            body = {"error": "too_many_requests", "detail": "full"}
            return web.json_response(body, status=503, headers={"Retry-After": "0"})
        if exchange.number:
            await refused.wait()
        return await answer(exchange)

    async with scripted(script) as server:
        run = await measure(server, concurrency=3, requests=3)
    summary = summarize(run)
    assert (summary.completed, summary.refused, summary.failed) == (2, 1, 0)
    assert summary.refused_s is not None
    assert summary.refused_s.mean == 0.25


async def test_a_refused_user_waits_for_retry_after_and_a_dead_server_causes_no_hot_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [(503, {"Retry-After": "5"}), (503, {"Retry-After": "3600"}), (503, {"Retry-After": "x"}), (500, {})]
    waits = []

    async def wait(budget: RequestBudget, seconds: float) -> None:
        waits.append(seconds)

    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 0:
            return await answer(exchange)
        status, headers = answers[exchange.number - 1]
        return web.json_response({"error": "x"}, status=status, headers=headers)

    monkeypatch.setattr(RequestBudget, "wait", wait)
    async with scripted(script) as server:
        await measure(server, requests=4)
    assert waits == [5.0, 10.0, 1.0, 0.1]


async def test_users_do_not_wait_once_the_budget_is_exhausted() -> None:
    budget = RequestBudget(1, float("inf"), Clock())
    assert budget.take()
    async with asyncio.timeout(20):
        await budget.wait(3600)
    assert not budget.take()


async def test_aborts_disconnect_from_the_server_and_are_counted_separately() -> None:
    """With a fraction of 0.5, requests 2 and 4 abort: their answers never end by themselves."""
    disconnected = 0

    async def script(exchange: Exchange) -> web.StreamResponse | None:
        nonlocal disconnected
        if exchange.number in (0, 1, 3):
            return await answer(exchange)
        await exchange.open()
        try:
            while True:
                await exchange.response.write(delta("more ").encode())
                await asyncio.sleep(0)
        finally:
            disconnected += 1

    async with scripted(script) as server:
        run = await measure(server, requests=4, abort_fraction=0.5, max_tokens=6)
        await until(lambda: disconnected == 2)
    summary = summarize(run)
    assert (summary.completed, summary.aborted, summary.failed) == (2, 2, 0)
    assert all(1 <= len(record.arrivals) <= 3 for record in run.records if record.outcome == "aborted")
    assert summary.e2e_s is not None
    assert summary.itl_s is not None
    assert summary.e2e_s.count == summary.itl_s.count == 2  # two answers of two words
    whole = [record.wire_bytes for record in run.records if record.outcome == "completed"]
    assert summary.bytes_per_token == sum(whole) / 4


async def test_slow_readers_pause_after_each_chunk_and_are_not_in_the_latencies() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.open()
        for _ in range(4):
            await exchange.response.write(delta("word ").encode())
        await exchange.response.write(done(4).encode())

    async with scripted(script) as server:
        run = await measure(server, requests=4, slow_readers=0.5)
    summary = summarize(run)
    assert (summary.completed, summary.slow) == (4, 2)
    assert summary.output_tokens == 16
    assert summary.e2e_s is not None
    assert summary.e2e_s.count == 2
    slow = [record for record in run.records if record.kind == "slow"]
    assert [record.e2e for record in slow] == pytest.approx([0.5, 0.5])  # five chunks
    closes = [exchange.request.headers.get("Connection") == "close" for exchange in server.exchanges[1:]]
    assert closes == [False, True, False, True]


def test_the_progress_of_a_run_is_reported() -> None:
    records = [RequestRecord(0, 1, 1, outcome=outcome, arrivals=[1.0, 2.0]) for outcome in OUTCOMES]
    target: Any = type("Target", (), {"plan": plan("http://127.0.0.1")})
    run = LoadRun(target, Prompts("mixed", 0), Clock(lambda: 12.0), 3, 9, records=records, sent=5)
    assert progress_line(run) == "   12 s: 2 of 9 done, 3 running, 1 refused, 0 failed, 4 texts"


async def test_a_sweep_runs_each_level_and_repeats_no_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    async with scripted(answer) as server:
        test = LoadTest(plan(server.url, sweep=(1, 2, 4), requests=4, warmup=2), server.time.clock, progress=False)
        await test.run()
    assert [run.concurrency for run in test.runs] == [1, 2, 4]
    assert [len(run.records) for run in test.runs] == [4, 4, 4]
    assert len(server.prompts) == len(set(server.prompts)) == 3 * (2 + 4)
    assert capsys.readouterr().out.count("4 completed") == 3


async def test_requests_follow_the_plan() -> None:
    async with scripted(answer) as server:
        await measure(server, ignore_eos=True, extra_body={"conversation": "b"}, headers=(("X-Key", "secret"),))
    exchange = server.exchanges[1]
    assert exchange.body["params"] == {"max_new_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    assert exchange.body["conversation"] == "b"
    assert exchange.request.headers["X-Key"] == "secret"
    assert exchange.request.headers["Accept"] == "text/event-stream"
