"""``aiochatstream bench``: plan, probe, runs, reports."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp

from aiochatstream import terminal
from aiochatstream.bench import exports, html, options, table, tokens
from aiochatstream.bench.load import Load
from aiochatstream.bench.metrics import summarize
from aiochatstream.bench.plan import Plan
from aiochatstream.bench.prompts import Prompts
from aiochatstream.bench.protocols import PROTOCOLS, Target
from aiochatstream.bench.request import Clock, Record, ask

NOTHING_COMPLETED = 1
INTERRUPTED = 130
KEEPALIVE_SECONDS = 2.0
"""Connections that lie idle longer are not used again: shorter than servers keep them (uvicorn: 5 s)."""


@dataclass
class Bench:
    """A load test: all its runs. Each run is in ``loads`` from its beginning, so an interrupted one is there, too."""

    plan: Plan
    clock: Clock = field(default_factory=Clock)
    progress: bool = True
    loads: list[Load] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompts = Prompts(self.plan.prompts, self.plan.seed)
        self._count_tokens = tokens.load_tokenizer(self.plan.tokenizer) if self.plan.tokenizer else None
        self._next_index = 0

    async def run(self) -> None:
        """Probe the server, then make the runs. Raises ValueError where the server cannot be asked."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        async with connector:
            target = Target(self.plan, PROTOCOLS[self.plan.protocol], connector, self.plan.model)
            await probe(target, self.prompts, self.clock)
            self._next_index += 1
            for level in self.plan.levels:
                if self.plan.warmup:
                    await self._run(self._load(target, level, self.plan.warmup))
                load = self._load(target, level, self.plan.requests_at(level), self.plan.duration)
                self.loads.append(load)
                await self._run(load)

    def _load(self, target: Target, level: int | None, requests: int | None, duration: float | None = None) -> Load:
        return Load(target, self.prompts, self.clock, level, requests, duration, self._next_index)

    async def _run(self, load: Load) -> None:
        reporter = asyncio.create_task(report_progress(load)) if self.progress else None
        try:
            await load.run()
        finally:
            if reporter is not None:
                reporter.cancel()
                with suppress(asyncio.CancelledError):
                    await reporter
            self._next_index += load.begun
            tokens.count(load.records, self._count_tokens)
            if load in self.loads:
                terminal.write(table.render(summarize(load), self.plan), sys.stdout, end="\n\n")


async def probe(target: Target, prompts: Prompts, clock: Clock) -> None:
    """One request, unmeasured: whether the server can be asked at all. It learns the name of an OpenAI server's model.

    Raises NotReady where the server refuses, and another ValueError where it cannot be asked.
    """
    user = target.new_user()
    async with user.session:
        if target.plan.protocol == "openai" and target.model is None:
            target.model = await first_model(target, user.session)
        record = Record(0, user.number, 1)
        await ask(target, user, prompts[record.index], record, clock)
    if record.outcome == "refused":
        raise NotReady(f"{target.endpoint} refused the first request ({record.reason}): is it loading, or full?")
    if record.outcome != "completed":
        raise ValueError(f"{target.endpoint} did not answer the first request: {record.reason}.")


class NotReady(ValueError):
    """The server speaks the protocol, but refuses: it is loading, or full."""


async def first_model(target: Target, session: aiohttp.ClientSession) -> str:
    """The first name that an OpenAI server's list of models has. Raises ValueError."""
    url = target.endpoint.parent.parent / "models"
    try:
        async with session.get(url, headers={"Accept": "application/json"}, allow_redirects=False) as response:
            return str((await response.json())["data"][0]["id"])
    except aiohttp.ClientConnectorError as error:
        raise ValueError(f"{url}: cannot connect: {terminal.os_error_reason(error)}.") from None
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError):
        raise ValueError(f"{url} names no model: name one with --model, if this is OpenAI's protocol.") from None


async def report_progress(load: Load) -> None:
    """Say on stderr how far ``load`` is: each second in a terminal, else a line each 10 s."""
    live = sys.stderr.isatty()
    try:
        while True:
            await asyncio.sleep(1 if live else 10)
            line = progress_line(load)
            print(f"{line:100}\r" if live else f"{line}\n", end="", file=sys.stderr, flush=True)
    finally:
        if live:
            print(" " * 100, end="\r", file=sys.stderr, flush=True)


def progress_line(load: Load) -> str:
    """How far ``load`` is."""
    outcomes = [record.outcome for record in load.records]
    of = "" if load.requests is None else f" of {load.requests}"
    return (
        f"{load.clock.now() - load.started:5.0f} s: {len(outcomes)}{of} done, {load.unfinished} under way, "
        f"{outcomes.count('refused')} refused, {outcomes.count('failed')} failed, "
        f"{sum(len(record.stamps) for record in load.records)} pieces of text"
    )


def main(arguments: argparse.Namespace, new_event_loop: Callable[[], asyncio.AbstractEventLoop]) -> int:
    """Run the command; return its exit code. Raises ValueError with a sentence for wrong use."""
    bench = Bench(options.read(arguments))
    interrupted = False
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(bench.run())
    except KeyboardInterrupt:
        interrupted = True
    report(bench, interrupted=interrupted)
    if interrupted:
        return INTERRUPTED
    completed = any(record.outcome == "completed" for load in bench.loads for record in load.records)
    return 0 if completed else NOTHING_COMPLETED


def report(bench: Bench, *, interrupted: bool) -> None:
    """Print what is left to say, and write the files that were asked for."""
    plan, loads = bench.plan, bench.loads
    if len(plan.levels) > 1 and loads:
        terminal.write(table.render_sweep([summarize(load) for load in loads]), sys.stdout)
    if interrupted:
        print("Interrupted: this is what was measured so far." if loads else "Interrupted: nothing was measured yet.")
    if plan.json:
        plan.json.write_text(exports.as_json(plan, loads, interrupted=interrupted), encoding="utf-8")
    if plan.csv:
        plan.csv.write_text(exports.as_csv(loads), encoding="utf-8")
    if plan.html:
        plan.html.write_text(html.page(plan, loads), encoding="utf-8")
