"""When requests are made, by whom, and how many."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from itertools import islice, pairwise
from statistics import fmean, pstdev
from typing import Any

import pytest
from aiohttp import web

from aiochatstream.bench.command import Bench, progress_line
from aiochatstream.bench.load import Budget, Kinds, Load, gaps
from aiochatstream.bench.metrics import summarize
from aiochatstream.bench.prompts import Prompts
from aiochatstream.bench.request import Clock, Outcome, Record
from tests.bench.scripted_server import Exchange, answer, delta, done, measure, plan, scripted
from tests.helpers import until

OUTCOMES: list[Outcome] = ["completed", "refused"]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_have_the_rate_and_the_burstiness_asked_for(burstiness: float) -> None:
    drawn = list(islice(gaps(5.0, burstiness, random.Random(1)), 50_000))  # noqa: S311
    assert fmean(drawn) == pytest.approx(1 / 5, rel=0.03)
    assert pstdev(drawn) / fmean(drawn) == pytest.approx(burstiness**-0.5, rel=0.03)  # of a gamma distribution


@pytest.mark.parametrize(("abort", "slow"), [(0, 0), (0.25, 0), (0, 1), (0.5, 0.5), (0.1, 0.3)])
def test_kinds_of_clients_come_in_exact_proportions(abort: float, slow: float) -> None:
    kinds = Kinds(abort, slow)
    drawn = [kinds.next() for _ in range(20)]
    assert (drawn.count("abort"), drawn.count("slow")) == (round(20 * abort), round(20 * slow))


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_the_closed_loop_keeps_its_users_busy_and_no_more(concurrency: int) -> None:
    """Answers come only when all users wait for one, or when the last request is there."""
    busy, most = 0, 0
    everyone = asyncio.Condition()

    async def script(exchange: Exchange) -> None:
        nonlocal busy, most
        busy, most = busy + 1, max(most, busy + 1)
        async with everyone:
            everyone.notify_all()
            await everyone.wait_for(lambda: most >= concurrency or exchange.number == 0)
        busy -= 1
        await answer(exchange)

    async with scripted(script) as server:
        load = await measure(server, concurrency=concurrency, requests=9)
    assert most == concurrency
    assert len(load.records) == len(server.exchanges) - 1 == 9
    assert len(set(server.prompts)) == 9


async def test_a_run_that_is_cut_lasts_until_the_cut() -> None:
    held = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if exchange.number == 1:
            held.set()
            await asyncio.Event().wait()
        await answer(exchange, 10)

    async with scripted(script) as server:
        bench = Bench(plan(server.url, concurrency=1, requests=2), server.time.clock, progress=False)
        run = asyncio.create_task(bench.run())
        await held.wait()
        server.time.seconds += 100
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
    summary = summarize(bench.loads[0])
    assert (summary.seconds, summary.unfinished) == (100, 1)


async def test_the_open_loop_sends_when_it_is_time_whoever_waits() -> None:
    """No request is answered until all have come."""
    all_there = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if exchange.number == 5:
            all_there.set()
        if exchange.number:
            await all_there.wait()
        await answer(exchange)

    async with scripted(script) as server:
        load = await measure(server, rate=2.0, requests=5, seed=3)
    drawn = list(islice(gaps(2.0, 1.0, random.Random("3/1")), 4))  # noqa: S311 - the seed, and the first index
    starts = sorted(record.started - load.started for record in load.records)
    assert starts[0] == 0.0
    assert [later - earlier for earlier, later in pairwise(starts)] == pytest.approx(drawn)
    assert summarize(load).rate == 2.0


async def test_the_open_loop_ends_with_its_duration() -> None:
    async with scripted(answer) as server:
        load = await measure(server, rate=10.0, burstiness=1e6, requests=None, duration=0.95)
    assert len(load.records) == 10  # at 0, 0.1, ... 0.9: this burstiness is next to none


async def test_no_request_begins_after_the_duration() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.time.seconds += 1.0
        await answer(exchange)

    async with scripted(script) as server:
        load = await measure(server, requests=None, duration=3.5)
    assert [record.started - load.started for record in load.records] == [0, 1, 2, 3]


class Cookies:
    """Gives each new user a cookie, and notes who said what."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.turns: dict[str, int] = {}

    async def __call__(self, exchange: Exchange) -> None:
        user = exchange.request.cookies.get("user", f"user{exchange.number}")
        self.seen.append(user)
        self.turns[user] = self.turns.get(user, 0) + 1
        await exchange.open(**{"Set-Cookie": f"user={user}; HttpOnly; Secure"})
        await exchange.response.write((delta("a") + done(1)).encode())


async def test_turns_are_one_users_and_users_share_no_cookies() -> None:
    script = Cookies()
    async with scripted(script) as server:
        load = await measure(server, requests=12, turns=3, concurrency=2)
    del script.turns["user0"]  # the probe
    turns: dict[int, list[int]] = {}
    for record in load.records:
        turns.setdefault(record.user, []).append(record.turn)
    assert all(spoken == [1, 2, 3][: len(spoken)] for spoken in turns.values())
    assert sum(len(spoken) == 3 for spoken in turns.values()) >= 3  # two may be cut by --requests
    assert sorted(script.turns.values()) == sorted(map(len, turns.values()))


async def test_over_openais_protocol_the_client_carries_the_history() -> None:
    async def script(exchange: Exchange) -> None:
        number = exchange.number
        await exchange.open()
        chunk = f'data: {{"choices": [{{"delta": {{"content": "answer {number}"}}, "finish_reason": "stop"}}]}}\n\n'
        await exchange.response.write(chunk.encode())

    async with scripted(script, "/v1/chat/completions") as server:
        await measure(server, protocol="openai", model="m", requests=4, turns=3, prompts="en-short")
    bodies = [exchange.body for exchange in server.exchanges]
    first, second, third, anew = (body["messages"] for body in bodies[1:])
    assert [len(messages) for messages in (first, second, third, anew)] == [1, 3, 5, 1]
    assert third[:3] == second
    assert [message["content"] for message in third if message["role"] == "assistant"] == ["answer 1", "answer 2"]
    assert (bodies[0]["model"], bodies[0]["temperature"], bodies[0]["stream"]) == ("m", 0.0, True)


async def test_a_full_queue_counts_as_refused_and_the_user_waits_its_turn() -> None:
    """Two places: the third user is refused after 0.25 s, the others are answered then."""
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
        load = await measure(server, concurrency=3, requests=3)
    summary = summarize(load)
    assert (summary.completed, summary.refused, summary.failed) == (2, 1, 0)
    assert summary.refused_s is not None
    assert summary.refused_s.mean == 0.25


async def test_a_refused_user_waits_as_told_and_a_dead_server_makes_no_hot_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [(503, {"Retry-After": "5"}), (503, {"Retry-After": "3600"}), (503, {"Retry-After": "x"}), (500, {})]
    rests = []

    async def rest(budget: Budget, seconds: float) -> None:
        rests.append(seconds)

    async def script(exchange: Exchange) -> web.StreamResponse | None:
        if exchange.number == 0:
            return await answer(exchange)
        status, headers = answers[exchange.number - 1]
        return web.json_response({"error": "x"}, status=status, headers=headers)

    monkeypatch.setattr(Budget, "rest", rest)
    async with scripted(script) as server:
        await measure(server, requests=4)
    assert rests == [5.0, 10.0, 1.0, 0.1]


async def test_nobody_waits_when_there_is_nothing_left_to_ask() -> None:
    budget = Budget(1, float("inf"), Clock())
    assert budget.take()
    async with asyncio.timeout(20):
        await budget.rest(3600)
    assert not budget.take()


async def test_clients_that_hang_up_are_gone_for_the_server_and_counted_by_themselves() -> None:
    """Of the requests 1 to 4, with a fraction of 0.5, the even ones hang up: those answers never end by themselves."""
    gone = 0

    async def script(exchange: Exchange) -> None:
        nonlocal gone
        if exchange.number in (0, 1, 3):
            return await answer(exchange)
        await exchange.open()
        try:
            while True:
                await exchange.response.write(delta("more ").encode())
                await asyncio.sleep(0)
        finally:
            gone += 1

    async with scripted(script) as server:
        load = await measure(server, requests=4, abort_fraction=0.5, max_tokens=6)
        await until(lambda: gone == 2)
    summary = summarize(load)
    assert (summary.completed, summary.aborted, summary.failed) == (2, 2, 0)
    assert all(1 <= len(record.stamps) <= 3 for record in load.records if record.outcome == "aborted")
    assert summary.e2e_s is not None
    assert summary.itl_s is not None
    assert summary.e2e_s.count == summary.itl_s.count == 2  # two answers of two words
    whole = [record.wire_bytes for record in load.records if record.outcome == "completed"]
    assert summary.bytes_per_token == sum(whole) / 4


async def test_slow_readers_rest_after_each_chunk_and_do_not_count_in_the_latencies() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.open()
        for _ in range(4):
            await exchange.response.write(delta("word ").encode())
        await exchange.response.write(done(4).encode())

    async with scripted(script) as server:
        load = await measure(server, requests=4, slow_readers=0.5)
    summary = summarize(load)
    assert (summary.completed, summary.slow) == (4, 2)
    assert summary.output_tokens == 16
    assert summary.e2e_s is not None
    assert summary.e2e_s.count == 2
    slow = [record for record in load.records if record.kind == "slow"]
    assert [record.e2e for record in slow] == pytest.approx([0.5, 0.5])  # five chunks
    leaves = [exchange.request.headers.get("Connection") == "close" for exchange in server.exchanges[1:]]
    assert leaves == [False, True, False, True]


def test_progress_tells_how_far_a_run_is() -> None:
    records = [Record(0, 1, 1, outcome=outcome, stamps=[1.0, 2.0]) for outcome in OUTCOMES]
    target: Any = type("Target", (), {"plan": plan("http://127.0.0.1")})
    load = Load(target, Prompts("mixed", 0), Clock(lambda: 12.0), 3, 9, records=records, begun=5)
    assert progress_line(load) == "   12 s: 2 of 9 done, 3 under way, 1 refused, 0 failed, 4 pieces of text"


async def test_a_sweep_climbs_its_ladder_and_repeats_no_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    async with scripted(answer) as server:
        bench = Bench(plan(server.url, sweep=(1, 2, 4), requests=4, warmup=2), server.time.clock, progress=False)
        await bench.run()
    assert [load.concurrency for load in bench.loads] == [1, 2, 4]
    assert [len(load.records) for load in bench.loads] == [4, 4, 4]
    assert len(server.prompts) == len(set(server.prompts)) == 3 * (2 + 4)
    assert capsys.readouterr().out.count("4 completed") == 3


async def test_what_is_asked_is_what_the_plan_says() -> None:
    async with scripted(answer) as server:
        await measure(server, ignore_eos=True, extra_body={"conversation": "b"}, headers=(("X-Key", "secret"),))
    exchange = server.exchanges[1]
    assert exchange.body["params"] == {"max_new_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    assert exchange.body["conversation"] == "b"
    assert exchange.request.headers["X-Key"] == "secret"
    assert exchange.request.headers["Accept"] == "text/event-stream"
