from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack

import aiohttp
import pytest

from aiochatstream.engines.upstream import Upstream
from aiochatstream.engines.upstream.client import report_failure
from aiochatstream.engines.upstream.pool import UpstreamPool
from aiochatstream.engines.upstream.server import UpstreamServer, UpstreamSlot
from aiochatstream.errors import UpstreamUnavailable
from tests.engines.upstream.model_server import ModelServer, open_pool
from tests.helpers import PATIENCE, until

pytestmark = pytest.mark.both_loops

STALL = 0.1


@pytest.fixture(autouse=True)
def short_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiochatstream.engines.upstream.server.MIN_BACK_OFF", 0.02)


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


async def fill(pool: UpstreamPool) -> list[UpstreamSlot]:
    """Take all slots."""
    return [await pool.acquire(str(number)) for number in range(pool.capacity)]


def key_of(pool: UpstreamPool, server: UpstreamServer) -> str:
    """Return a key that belongs to ``server`` while nothing runs."""
    for number in range(1000):
        with pool._take(str(number), (), False) as slot:  # type: ignore[union-attr]
            if slot.server is server:
                return str(number)
    raise AssertionError


async def test_servers_report_their_model_and_share_the_answers() -> None:
    async with ModelServer() as a, ModelServer() as b, open_pool(a, Upstream(b.url, slots=3), slots=2) as pool:
        assert pool.capacity == 5
        assert pool.unavailable() is None
        slots = await fill(pool)
        assert {slot.server.url for slot in slots} == {a.url, b.url}
        assert [(s.running, s.model, s.context_len, s.dialect.name) for s in pool.servers] == [
            (2, "fake", 100, "vllm"),
            (3, "fake", 100, "vllm"),
        ]
        with pytest.raises(UpstreamUnavailable):
            await pool.acquire("x")
        with await pool.acquire("x", over_slots=True):
            assert sum(server.running for server in pool.servers) == 6
        slots[0].release()
        with await pool.acquire("x"):
            pass


async def test_the_same_key_belongs_to_the_same_server() -> None:
    async with ModelServer() as a, ModelServer() as b, open_pool(a, b) as pool:
        for key in map(str, range(20)):
            with await pool.acquire(key) as first:
                pass
            with await pool.acquire(key) as second:
                assert first.server is second.server


async def test_the_start_does_not_wait_for_servers_that_are_down(caplog: pytest.LogCaptureFixture) -> None:
    async with ModelServer() as server:
        pass
    changes: list[int] = []
    async with open_pool(server, slots=3) as pool:
        pool.on_capacity = lambda: changes.append(pool.capacity)
        assert isinstance(pool.unavailable(), UpstreamUnavailable)
        with pytest.raises(UpstreamUnavailable) as error:
            await pool.acquire("key")
        assert str(server.port) not in str(error.value)
        waiting = asyncio.create_task(pool.acquire("key", wait=PATIENCE))
        await server.start()
        with await waiting as slot:
            assert slot.server.url == server.url
        assert (changes, pool.unavailable()) == ([3], None)
        await server.stop()
    name = server.url.removeprefix("http://")
    assert messages(caplog) == [
        f"Upstream server {name} is down: Connection refused.",
        f"Upstream server {name} is up, with model fake.",
    ]


async def test_a_failed_server_gets_no_requests_until_a_probe_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(ModelServer()) for _ in range(2)]
        pool = await stack.enter_async_context(open_pool(a, b, slots=4))
        changes: list[int] = []
        pool.on_capacity = lambda: changes.append(pool.capacity)
        slots = [slot for slot in await fill(pool) if slot.server.url == a.url]
        await a.stop()
        for slot in slots:
            slot.failed("connection reset.")
        failed = slots[0].server
        assert (pool.servers, changes) == ([s for s in pool.servers if s.url == b.url], [4])
        assert failed.running == 4, "its answers may continue"
        for slot in slots:
            slot.release()
        await until(lambda: failed._probes)
        assert ("upstream_failures_total", {"server": failed.name}, 1) in pool.metrics()
        a.probes = 0
        await a.start()
        await until(lambda: failed.is_up)
        assert a.probes == 1
        slots[0].failed("connection reset.")
        assert failed.is_up, "the report belongs to an earlier outage"
        await a.stop()
    assert len([text for text in messages(caplog) if "down" in text]) == 1


async def test_a_server_that_sends_data_during_an_unanswered_probe_stays_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiochatstream.engines.upstream.pool.PROBE_SECONDS", 0.05)
    async with ModelServer() as model_server, open_pool(model_server) as pool:
        [server] = pool.servers
        with await pool.acquire("key") as slot:
            model_server.silent = True
            probe = asyncio.create_task(pool._hang_unless_alive(server))
            await until(lambda: model_server.probes == 2)
            slot.heard(output=False)
            await probe
            assert server.is_up
            await pool._hang_unless_alive(server)
            assert (server.is_up, slot.hung) == (False, True)


async def test_the_failures_of_many_answers_start_one_recovery() -> None:
    async with ModelServer() as server, open_pool(server) as pool:
        slots = await fill(pool)
        tasks, probes = len(pool._tasks), server.probes
        server.silent = True
        for slot in slots:
            slot.failed("connection reset.")
            slot.release()
        await until(lambda: server.probes > probes)
        assert (len(pool._tasks), server.probes) == (tasks + 1, probes + 1)


async def test_a_failure_that_a_probe_does_not_confirm_is_over_at_once() -> None:
    async with ModelServer() as server, open_pool(server) as pool:
        with await pool.acquire("key") as slot:
            slot.heard()
            slot.failed("HTTP 500")
            assert pool.unavailable()
            with await pool.acquire("key", wait=PATIENCE) as second:
                assert second.server is slot.server
        assert server.probes == 2


async def test_a_connection_that_is_slow_to_open_is_no_outage_while_answers_arrive() -> None:
    async with ModelServer() as server, open_pool(server) as pool:
        with await pool.acquire("a") as other, await pool.acquire("b") as slot:
            other.heard()
            report_failure(slot, aiohttp.ConnectionTimeoutError())
            assert pool.unavailable() is None
            report_failure(slot, ConnectionRefusedError())
            assert pool.unavailable() is not None
        await until(lambda: pool.unavailable() is None)
        with await pool.acquire("a") as slot:
            slot.heard()
            report_failure(slot, aiohttp.ConnectionTimeoutError())
            assert pool.unavailable() is not None


async def test_a_busy_server_is_up_and_gets_no_requests_for_a_while() -> None:
    async with ModelServer() as a, ModelServer() as b, open_pool(a, b) as pool:
        busy, other = pool.servers
        with await pool.acquire(key_of(pool, busy)) as slot:
            assert slot.server is busy
            slot.busy(1000)
        assert pool.capacity == 128
        with await pool.acquire(key_of(pool, other), avoid=[other]) as slot:
            assert slot.server is other
            slot.busy(0.05)
        with pytest.raises(UpstreamUnavailable):
            await pool.acquire("key", over_slots=True)
        with await pool.acquire("key", over_slots=True, wait=PATIENCE) as slot:
            assert slot.server is other
        busy.resume_requests()
        with await pool.acquire("key", avoid=[other]) as slot:
            assert slot.server is busy


async def test_a_busy_server_waits_at_most_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiochatstream.engines.upstream.server.MAX_BUSY_SECONDS", 0.01)
    async with ModelServer() as server, open_pool(server) as pool:
        for seconds in (1000, float("nan"), -1, None):
            with await pool.acquire("key", wait=PATIENCE) as slot:
                slot.busy(seconds)


async def test_a_draining_server_gets_no_requests_until_it_responds_regularly() -> None:
    async with ModelServer() as server, open_pool(server) as pool:
        state = pool.servers[0]
        server.status = 503
        with await pool.acquire("key") as slot:
            slot.draining()
            assert pool.unavailable()
            await until(lambda: server.probes == 3)
            assert (state.state, state.running) == ("draining", 1)
        await server.stop()
        await until(lambda: state.state == "down")
        server.status = 200
        await server.start()
        await until(lambda: state.is_up)
        assert ("upstream_failures_total", {"server": state.name}, 0) in pool.metrics()


async def test_a_server_whose_answers_are_all_silent_hangs() -> None:
    async with ModelServer() as a, ModelServer() as b, open_pool(a, b, slots=4, stall=STALL) as pool:
        aborted: list[UpstreamSlot] = []
        slots = await fill(pool)
        for slot in slots:
            slot.on_hung = lambda slot=slot: aborted.append(slot)  # type: ignore[misc]
        hung, other = pool.servers
        silent = [slot for slot in slots if slot.server is hung]
        silent[0].heard()  # one with output, others in prefill
        others = [slot for slot in slots if slot.server is other]
        while len(aborted) < len(silent):
            others[0].heard()  # one streams, others in a long prefill
            await asyncio.sleep(0.01)
        assert aborted == [slot for slot in slots if slot.hung] and set(aborted) == set(silent)  # noqa: PT018
        assert (hung.outages, other.outages) == (1, 0)
        for slot in slots:
            slot.release()
        await until(lambda: hung.is_up)  # it responds to probes
        assert pool.capacity == 5, "one answer, on trial"
        with await pool.acquire(key_of(pool, hung)) as slot:
            assert slot.server is hung
            with pytest.raises(UpstreamUnavailable):
                await fill_over_slots(pool, hung)
            slot.heard()
            assert pool.capacity == 8


async def fill_over_slots(pool: UpstreamPool, server: UpstreamServer) -> None:
    """Acquire slots until ``server`` gets one."""
    for other in pool.servers:
        if other is not server:
            other.pause_requests(5)
    try:
        await pool.acquire("key", over_slots=True)
    finally:
        for other in pool.servers:
            other.resume_requests()


async def test_a_silent_prefill_does_not_hang_if_the_server_responds() -> None:
    async with ModelServer() as server, open_pool(server, stall=STALL) as pool:
        with await pool.acquire("key") as slot:
            slot.heard(output=False)
            await until(lambda: server.probes == 3)
            assert not slot.hung
            server.silent = True
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("aiochatstream.engines.upstream.pool.PROBE_SECONDS", 0.05)
                await until(lambda: slot.hung)
            assert pool.unavailable()


async def test_silence_has_no_meaning_while_the_client_does_not_read() -> None:
    async with ModelServer() as server, open_pool(server, stall=STALL) as pool:
        checks = count_checks(pool)
        with await pool.acquire("key") as slot:
            slot.heard()
            slot.pause()
            await until(lambda: len(checks) >= 5)
            assert not slot.hung
            with await pool.acquire("key") as second:
                second.heard()
                await until(lambda: second.hung)
                assert slot.hung


async def test_silence_has_no_meaning_while_this_process_is_stopped() -> None:
    async with ModelServer() as server, open_pool(server, stall=STALL) as pool:
        checks = count_checks(pool)
        with await pool.acquire("key") as slot:
            await until(lambda: checks)
            checks.clear()
            slot.heard()
            time.sleep(2 * STALL)  # noqa: ASYNC251 - blocks the event loop
            await until(lambda: slot.hung)
            assert len(checks) >= 2, "the first one was late"


def count_checks(pool: UpstreamPool) -> list[UpstreamServer]:
    """Return a list to which each check for silence adds its server."""
    checks: list[UpstreamServer] = []
    check = pool._check_silence

    def counted(server: UpstreamServer) -> float:
        checks.append(server)
        return check(server)

    pool._check_silence = counted  # type: ignore[method-assign]
    return checks


async def test_requests_that_wait_are_served_in_their_order() -> None:
    async with ModelServer() as server, open_pool(server, slots=1) as pool:
        order: list[int] = []

        async def use(number: int) -> None:
            with await pool.acquire(str(number), wait=PATIENCE):
                order.append(number)
                await asyncio.sleep(0)

        first = await pool.acquire("first")
        tasks = [asyncio.create_task(use(number)) for number in range(20)]
        await until(lambda: len(pool._waiters) == 20)
        tasks[3].cancel()
        first.release()
        late = asyncio.create_task(use(20))
        await asyncio.gather(*tasks, late, return_exceptions=True)
        assert order == [number for number in range(21) if number != 3]
        assert pool.servers[0].running == 0


async def test_an_answer_that_had_begun_elsewhere_waits_for_a_busy_server_but_not_for_a_slot() -> None:
    async with ModelServer() as server, open_pool(server, slots=1) as pool:
        first = await pool.acquire("first")
        first.busy(5)
        new = asyncio.create_task(pool.acquire("new", wait=PATIENCE))
        await until(lambda: len(pool._waiters) == 1)
        begun_elsewhere = asyncio.create_task(pool.acquire("begun", wait=PATIENCE, over_slots=True))
        await until(lambda: len(pool._waiters) == 2)
        pool.servers[0].resume_requests()
        (await begun_elsewhere).release()
        assert not new.done()
        first.release()
        (await new).release()


async def test_a_request_that_is_cancelled_in_the_moment_of_its_turn_returns_the_slot() -> None:
    async with ModelServer() as server, open_pool(server, slots=1) as pool:
        first = await pool.acquire("first")
        waiting = asyncio.create_task(pool.acquire("second", wait=PATIENCE))
        await until(lambda: pool._waiters)
        first.release()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert pool.servers[0].running == 0


async def test_a_request_whose_server_fails_in_the_moment_of_its_turn_gets_another() -> None:
    async with ModelServer() as a, ModelServer() as b, open_pool(a, b, slots=1) as pool:
        slots = await fill(pool)
        waiting = asyncio.create_task(pool.acquire("key", wait=PATIENCE))
        await until(lambda: pool._waiters)
        slots[0].release()
        slots[0].failed("connection reset.")
        slots[1].release()
        with await waiting as slot:
            assert slot.server is slots[1].server


async def test_a_request_waits_for_a_limited_time() -> None:
    async with ModelServer() as server, open_pool(server, slots=1) as pool:
        with await pool.acquire("first"), pytest.raises(UpstreamUnavailable):
            await pool.acquire("second", wait=0.02)
        assert not pool._waiters
        with await pool.acquire("third"):
            pass


async def test_servers_to_avoid_are_the_last_resort() -> None:
    async with ModelServer() as a, ModelServer() as b, open_pool(a, b, slots=1) as pool:
        first, second = pool.servers
        with await pool.acquire(key_of(pool, first), avoid=[first]) as slot:
            assert slot.server is second
            with await pool.acquire("key", avoid=[first]) as other:
                assert other.server is first


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_misconfigured_server_is_logged_once(caplog: pytest.LogCaptureFixture, status: int) -> None:
    async with ModelServer(status) as server, open_pool(Upstream(server.url, api_key="sk-123")) as pool:
        assert pool.unavailable()
        await until(lambda: server.probes == 3)
        assert server.headers[0]["Authorization"] == "Bearer sk-123"
        server.status = 200
        await until(lambda: not pool.unavailable())
        with await pool.acquire("key") as slot:
            slot.misconfigured("HTTP 401 for the model")
            slot.misconfigured("HTTP 401 for the model")
            assert not pool.unavailable()
    errors = messages(caplog, logging.ERROR)
    assert [f"(HTTP {status})" in errors[0], "for the model" in errors[1], len(errors)] == [True, True, 2]
    assert "sk-123" not in caplog.text
    assert "secret" not in caplog.text


async def test_a_server_without_the_model_is_down(caplog: pytest.LogCaptureFixture) -> None:
    async with ModelServer() as server, open_pool(server, model="other") as pool:
        assert pool.unavailable()
    assert "is down: model: the server does not list 'other'." in caplog.text


async def test_all_down_and_back_keeps_the_order() -> None:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(ModelServer()) for _ in range(2)]
        pool = await stack.enter_async_context(open_pool(*servers, slots=2))
        capacities: list[int] = []
        pool.on_capacity = lambda: capacities.append(pool.capacity)
        slots = await fill(pool)
        order: list[int] = []

        async def use(number: int) -> None:
            with await pool.acquire(str(number), wait=PATIENCE):
                order.append(number)

        for server in servers:
            await server.stop()
        for slot in slots:
            slot.failed("connection reset.")
            slot.release()
        tasks = [asyncio.create_task(use(number)) for number in range(10)]
        await until(lambda: len(pool._waiters) == 10)
        assert capacities == [2, 0]
        for server in servers:
            await server.start()
        await asyncio.gather(*tasks)
        await until(lambda: capacities == [2, 0, 2, 4])
        assert order == sorted(order)


async def test_the_failure_of_a_server_without_answers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiochatstream.engines.upstream.pool.IDLE_PROBE_SECONDS", 0.01)
    async with ModelServer() as server, open_pool(server) as pool:
        await server.stop()
        await until(lambda: pool.unavailable() is not None)
        await server.start()
        await until(lambda: pool.unavailable() is None)


async def test_a_server_that_comes_and_goes_serves_everybody(caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncExitStack() as stack:
        steady, flapping = [await stack.enter_async_context(ModelServer()) for _ in range(2)]
        pool = await stack.enter_async_context(open_pool(steady, flapping, slots=3))
        served: list[int] = []
        stopped = asyncio.Event()

        async def use(number: int) -> None:
            while not stopped.is_set():
                with await pool.acquire(str(number), wait=PATIENCE) as slot:
                    assert slot.server.is_up
                    assert slot.server.running <= 3
                    try:
                        async with slot.server.session.request("GET", "/v1/models") as response:
                            await response.read()
                    except aiohttp.ClientError:
                        slot.failed("connection reset.")
                    else:
                        slot.heard()
                        served.append(number)

        users = [asyncio.create_task(use(number)) for number in range(12)]
        for _ in range(4):
            await flapping.stop()
            await until(lambda: pool.capacity == 3)
            await flapping.start()
            await until(lambda: pool.capacity == 6)
        stopped.set()
        await asyncio.gather(*users)
        outages = {server.url: server.outages for server in pool.servers}
    assert set(served) == set(range(12))
    assert outages[steady.url] == 0
    assert outages[flapping.url] >= 4  # a probe through an open connection succeeds while the server stops
    assert len([text for text in messages(caplog) if "is down" in text]) == outages[flapping.url]


async def test_a_server_with_another_context_length_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aiochatstream.engines.upstream.pool.IDLE_PROBE_SECONDS", 0.01)
    lengths: list[int | None] = []
    async with ModelServer() as server, open_pool(server) as pool:
        pool.on_capacity = lambda: lengths.append(pool.servers[0].context_len)
        server.context_len = 50
        await until(lambda: bool(lengths))
    assert lengths[0] == 50
    assert messages(caplog) == [
        f"Upstream server 127.0.0.1:{server.port} has another model or context length now: fake, 50 tokens."
    ]


async def test_a_busy_server_that_names_no_time_pauses_requests() -> None:
    async with ModelServer() as server, open_pool(server) as pool:
        with await pool.acquire("a") as slot:
            slot.busy(0.0)
        with pytest.raises(UpstreamUnavailable):
            await pool.acquire("a")
        with await pool.acquire("a", wait=PATIENCE):
            pass


async def test_requests_that_wait_end_with_the_pool() -> None:
    async with ModelServer() as server, open_pool(server, slots=1) as pool:
        slot = await pool.acquire("first")
        waiting = asyncio.create_task(pool.acquire("second", wait=PATIENCE))
        await until(lambda: pool._waiters)
        await pool.close()
        with pytest.raises(UpstreamUnavailable):
            await waiting
        slot.release()


async def test_figures_of_servers_have_the_name_as_label() -> None:
    async with ModelServer() as server, open_pool(Upstream(server.url, name="cuda:0")) as pool:
        with await pool.acquire("key") as slot:
            slot.heard(output=False)
            for _ in range(3):
                slot.heard()
            figures = {name: (labels, value) for name, labels, value in pool.metrics()}
        seconds = figures.pop("upstream_first_output_seconds_total")[1]
        assert 0 < seconds < PATIENCE
        labels = {"server": "cuda:0"}
        assert figures == {
            "upstream_up": (labels, 1),
            "upstream_running": (labels, 1),
            "upstream_failures_total": (labels, 0),
            "upstream_answers_total": (labels, 1),
        }
