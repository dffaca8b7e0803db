"""Scenarios of ``scaling.py``. Each appends rows of figures to the results."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from inspect import signature
from statistics import median
from typing import Any, cast

import aiohttp
import psutil
from common import progress
from peers import ROUTERS
from scaling_servers import Upstream, metered, running_front, running_router, running_upstreams
from stream_client import Exchange, Load, LoadResult, Wire, connect, request_bytes

from aiochatstream.engines.upstream import UpstreamEngine

Row = dict[str, Any]
"""Figures of a server in a case of a scenario: times in seconds, memory in MiB, counts."""

OURS: dict[str, Wire] = {"chat": "chat", "relay": "v1"}
"""Names of our front with its two protocols."""
TOKEN_S = 0.05
"""Seconds between tokens of a stream, unless a scenario needs other ones: 20 tokens/s."""
FIRST_S = 1.5
"""Seconds from the start of a load until something happens to a server."""
STALL_S = float(signature(UpstreamEngine).parameters["stall"].default)
"""Seconds of silence after which our front gives an upstream up."""
PATIENCE_S = 30.0
"""Seconds of silence after which an answer of :func:`fail` counts as hung. Ours has STALL_S more to detect silence."""
RETURN_SECONDS = 60.0
"""Maximum seconds until a front uses an upstream that has returned."""
THINK_S = 1.5
"""Maximum seconds between the turns of a conversation."""
ARRIVE_SECONDS = 20.0
"""Maximum seconds until an upstream has received a request."""


@dataclass
class Scaling:
    """Options, and the results so far."""

    options: argparse.Namespace
    rows: list[Row] = field(default_factory=list)
    not_measured: dict[str, str] = field(default_factory=dict)
    round: int = 0

    def add(self, scenario: str, case: str, server: str, **figures: Any) -> None:
        """Append a row."""
        progress(f"{scenario}, {case}, {server}: done")
        self.rows.append({"scenario": scenario, "case": case, "server": server, "round": self.round, **figures})


@dataclass(frozen=True)
class Server:
    """A server of a scenario. ``process`` is None if it is an upstream itself."""

    port: int
    wire: Wire
    process: psutil.Process | None

    @classmethod
    @asynccontextmanager
    async def running(
        cls, scaling: Scaling, name: str, upstreams: list[Upstream], **limits: int
    ) -> AsyncIterator[Server]:
        """Run a server in front of upstreams during the block.

        Raise NotMeasured if another router is not installed or does not start, RuntimeError if ours does not.

        :param name: "direct", one of OURS, or one of ROUTERS.
        :param limits: ``slots`` and ``queue`` of our front.
        """
        if name == "direct":
            yield cls(upstreams[0].port, "v1", None)
        elif name in OURS:
            async with running_front(upstreams, **limits) as process:
                yield cls(process.port, OURS[name], process.process)
        else:
            async with running_router(name, upstreams, scaling.options.peers) as process:
                yield cls(process.port, "v1", process.process)


async def run_load(
    load: Load, server: Server, disturb: Callable[[], Awaitable[None]] | None = None
) -> tuple[LoadResult, Row]:
    """Run a load, with a disturbance beside it, and return the results and their figures."""
    async with AsyncExitStack() as stack:
        meter = await stack.enter_async_context(metered(server.process)) if server.process else None
        cpu, own_cpu, start = meter.cpu_s() if meter else 0.0, time.process_time(), time.monotonic()
        await asyncio.gather(load.run(), *([disturb()] if disturb else []))
        own_cpu, took = time.process_time() - own_cpu, time.monotonic() - start
        cpu = meter.cpu_s() - cpu if meter else 0.0
    result = load.result()
    figures: Row = {"requests": len(result.answers), **result.outcomes}
    figures["tokens_per_s"] = result.tokens / result.took_s
    if meter and result.tokens:
        figures["cpu_us_per_token"] = cpu / result.tokens * 1e6
        figures |= {"rss_mib": meter.peaks["rss"] / 2**20, "threads": meter.peaks["threads"]}
    if ttft := result.ttft_s:
        figures |= {"ttft_p50_s": ttft.p50, "ttft_p99_s": ttft.p99}
    figures |= {"longest_gap_s": result.longest_gap_s, "client_cpu": own_cpu / took}
    if result.reasons:
        figures["reasons"] = result.reasons
    return result, figures


async def overhead(scaling: Scaling, name: str) -> None:
    """Measure a server with one stream at a time, and with many."""
    clients, seconds = scaling.options.streams, scaling.options.seconds
    with running_upstreams(2, words=10) as upstreams:
        async with Server.running(scaling, name, upstreams) as server:
            await Load(server.port, server.wire, 1, 10, seconds=0.5, name="warm up").run()
            _, figures = await run_load(Load(server.port, server.wire, 1, 10, seconds=seconds / 2), server)
            scaling.add("overhead", "1 stream, no pauses", name, **figures)
            for upstream in upstreams:
                await upstream.change(token_s=TOKEN_S, words=100)
            load = Load(server.port, server.wire, clients, 100, seconds=seconds, spread_s=1.0)
            _, figures = await run_load(load, server)
            scaling.add("overhead", f"{clients} streams, 20 tokens/s each", name, **figures)


async def streams(scaling: Scaling, name: str) -> None:
    """Measure a server with thousands of slow streams."""
    clients = scaling.options.many_streams
    with running_upstreams(2, words=60, token_s=0.25) as upstreams:
        async with Server.running(scaling, name, upstreams) as server:
            _, figures = await run_load(Load(server.port, server.wire, clients, 60, spread_s=2.0), server)
            scaling.add("streams", f"{clients} streams, 4 tokens/s each", name, **figures)


async def two(scaling: Scaling, name: str) -> None:
    """Compare two upstreams with one, under a load that is too large for either."""
    for count in (1, 2):
        with running_upstreams(count, words=20, token_s=0.02, slots=32) as upstreams:
            async with Server.running(scaling, name, upstreams, slots=32) as server:
                load = Load(server.port, server.wire, 96, 20, seconds=scaling.options.seconds)
                _, figures = await run_load(load, server)
                scaling.add("two", f"{count} x 32 slots, 96 users", name, **figures)


async def kill(scaling: Scaling, name: str) -> None:
    """Kill one of two upstreams while it generates."""
    await fail(scaling, name, "kill", Upstream.end, patience_s=PATIENCE_S)


async def stop(scaling: Scaling, name: str) -> None:
    """Suspend one of two upstreams while it generates: alive, connected and silent."""
    await fail(scaling, name, "stop", Upstream.suspend, patience_s=PATIENCE_S + (STALL_S if name in OURS else 0))


async def fail(
    scaling: Scaling,
    name: str,
    scenario: str,
    act: Callable[[Upstream], None],
    *,
    patience_s: float,
    clients: int = 100,
) -> None:
    running: list[int] = []
    with running_upstreams(2, words=120, token_s=TOKEN_S) as upstreams:
        async with Server.running(scaling, name, upstreams) as server:

            async def disturb() -> None:
                await asyncio.sleep(FIRST_S)
                running.append((await upstreams[0].state())["running"])
                act(upstreams[0])

            load = Load(server.port, server.wire, clients, 120, patience_s=patience_s)
            _, figures = await run_load(load, server, disturb)
            scaling.add(scenario, f"{clients} streams of 120 tokens", name, victims=running[0], **figures)


async def rolling(scaling: Scaling, name: str) -> None:
    """Restart every upstream, one after the other, under a load that continues."""
    with running_upstreams(3, words=40, token_s=TOKEN_S) as upstreams:
        async with Server.running(scaling, name, upstreams) as server:
            load = Load(server.port, server.wire, 60, 40, seconds=3600.0, spread_s=2.0)

            async def disturb() -> None:
                await asyncio.sleep(2 * FIRST_S)
                for upstream in upstreams:
                    await asyncio.to_thread(upstream.end, signal.SIGTERM)
                    await asyncio.sleep(1.0)
                    await asyncio.to_thread(upstream.start)
                    await wait_for([upstream], "words_sent", RETURN_SECONDS)
                load.end()

            _, figures = await run_load(load, server, disturb)
            scaling.add("rolling", "60 users, 3 upstreams restarted", name, **figures)


async def wait_for(upstreams: Sequence[Upstream], figure: str, seconds: float) -> None:
    """Wait until a counter of an upstream is above 0. Raise TimeoutError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not any([(await upstream.state())[figure] for upstream in upstreams]):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{figure} of the upstreams was still 0 after {seconds:g} s.")
        await asyncio.sleep(0.05)


async def overload(scaling: Scaling, name: str) -> None:
    """Send a front the load that it can take, and three times as much."""
    for clients in (40, 120):
        with running_upstreams(2, words=20, token_s=TOKEN_S, slots=20) as upstreams:
            async with Server.running(scaling, name, upstreams, slots=20, queue=20) as server:
                load = Load(server.port, server.wire, clients, 20, seconds=scaling.options.seconds, pause_s=0.5)
                result, figures = await run_load(load, server)
                pairs = zip(result.exchanges, result.answers, strict=True)
                refusals = [exchange.took_s for exchange, answer in pairs if answer.outcome == "refused"]
                figures["refusal_p50_s"] = median(refusals) if refusals else None
                figures["most_running"] = max([(await upstream.state())["most_running"] for upstream in upstreams])
                scaling.add("overload", f"{clients} users, 2 x 20 slots, queue 20", name, **figures)


async def slow(scaling: Scaling, name: str) -> None:
    """Make one of two upstreams ten times slower than the other."""
    for factor in (1, 10):
        with running_upstreams(2, words=40, token_s=0.02) as upstreams:
            async with Server.running(scaling, name, upstreams, slots=64) as server:
                await upstreams[1].change(token_s=0.02 * factor)
                load = Load(server.port, server.wire, 60, 40, seconds=scaling.options.seconds)
                result, figures = await run_load(load, server)
                times = sorted(exchange.took_s for exchange in result.exchanges)
                requests = [(await upstream.state())["requests"] for upstream in upstreams]
                figures |= {"e2e_p50_s": median(times), "e2e_p99_s": times[int(0.99 * len(times))]}
                figures["slow_share"] = requests[1] / sum(requests)
                scaling.add("slow", f"60 users, one upstream {factor} x as slow", name, **figures)


async def affinity(scaling: Scaling, name: str) -> None:
    """Count the prompt tokens from the prefix caches of one upstream and of four, or of four at random ("direct")."""
    turns = 6
    for users, slots in ((40, 64), (160, 256)):  # slots of all upstreams; a user thinks in a third of the time
        for count in (1, 4) if name in OURS else (4,):
            with running_upstreams(count, words=30, token_s=TOKEN_S) as upstreams:
                async with Server.running(scaling, name, upstreams, slots=slots // count) as server:
                    ports = [server.port] if name in OURS else [upstream.port for upstream in upstreams]
                    usages = await asyncio.gather(*(converse(ports, server.wire, user, turns) for user in range(users)))
                    cached, prompt = map(sum, zip(*(usage for user in usages for usage in user), strict=True))
                    figures = {"cached_tokens": cached, "prompt_tokens": prompt, "cached_share": cached / prompt}
                    case = f"{users} users, {turns} turns, {slots} slots of {count} upstream{'s' if count > 1 else ''}"
                    scaling.add("affinity", case, name, **figures)


async def converse(ports: Sequence[int], wire: Wire, user: int, turns: int) -> list[tuple[int, int]]:
    """Hold a conversation, each turn at a random port, and return cached and prompt tokens of the turns."""
    choice = random.Random(user)  # noqa: S311 - not security-relevant
    messages: list[dict[str, str]] = []
    counts = []
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        for turn in range(turns):
            text = f"User {user} asks for turn {turn}: " + " ".join(f"word{k}" for k in range(20))
            messages.append({"role": "user", "content": text})
            path, body = "/chat_stream", cast(dict[str, Any], {"user_input": text})
            if wire == "v1":
                path, body = "/v1/chat/completions", {"model": "fake", "messages": messages}
            url = f"http://127.0.0.1:{choice.choice(ports)}{path}"
            async with session.post(url, json=body, headers={"Accept": "application/json"}) as response:
                if response.status != 200:
                    raise RuntimeError(f"a turn of a conversation failed: HTTP {response.status}")
                data = await response.json()
            usage = data["usage"]
            if wire == "v1":
                usage |= usage["prompt_tokens_details"]
                messages.append({"role": "assistant", "content": data["choices"][0]["message"]["content"]})
            counts.append((usage["cached_tokens"], usage["prompt_tokens"]))
            await asyncio.sleep(choice.random() * THINK_S)
    return counts


async def leave(scaling: Scaling, name: str) -> None:
    """Disconnect clients, one after the other, and measure until the upstream knows."""
    for case, first_token_s in {"while text arrives": 0.0, "before the first text": 3600.0}.items():
        with running_upstreams(2, words=10_000, token_s=TOKEN_S, first_token_s=first_token_s) as upstreams:
            async with Server.running(scaling, name, upstreams) as server:
                delays = [await leave_once(server, upstreams, number) for number in range(20)]
                times = [delay for delay in delays if delay is not None]
                figures = {"p50_s": median(times), "max_s": max(times)} if times else {}
                missed = len(delays) - len(times)
                scaling.add("leave", case, name, requests=len(delays), missed=missed, **figures)


async def leave_once(server: Server, upstreams: Sequence[Upstream], number: int) -> float | None:
    """Send a request, leave, and return the seconds until the upstream's connection is closed; None after 10 s."""
    connection = await connect(server.port)
    exchange = Exchange(server.wire, f"leave {number}", time.monotonic())
    request = request_bytes(server.wire, exchange.message, "fake")
    sending = asyncio.create_task(connection.send(exchange, request, patience=60.0))
    await wait_for(upstreams, "running", ARRIVE_SECONDS)
    await asyncio.sleep(0.2)
    left = time.monotonic()
    connection.close()
    await sending
    for _ in range(200):
        for upstream in upstreams:
            for disconnect in (await upstream.state())["disconnects"]:
                if disconnect >= left:
                    return float(disconnect - left)
        await asyncio.sleep(0.05)
    return None


@dataclass(frozen=True)
class Scenario:
    """A function that measures a server, and the names of the servers."""

    run: Callable[[Scaling, str], Awaitable[None]]
    servers: tuple[str, ...]


SCENARIOS = {
    "overhead": Scenario(overhead, ("direct", *OURS, *ROUTERS)),
    "streams": Scenario(streams, (*OURS, "vllm-router")),
    "two": Scenario(two, ("chat",)),
    "kill": Scenario(kill, (*OURS, *ROUTERS)),
    "stop": Scenario(stop, (*OURS, *ROUTERS)),
    "rolling": Scenario(rolling, (*OURS, "vllm-router")),
    "overload": Scenario(overload, (*OURS,)),
    "slow": Scenario(slow, (*OURS, "vllm-router")),
    "affinity": Scenario(affinity, ("chat", "direct")),
    "leave": Scenario(leave, (*OURS, *ROUTERS)),
}
