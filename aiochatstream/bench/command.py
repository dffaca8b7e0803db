"""The command ``aiochatstream bench``: plan, probe, runs, reports."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp

from aiochatstream import terminal
from aiochatstream.bench import charts, exports, html, options, table, tokens
from aiochatstream.bench.load import LoadRun
from aiochatstream.bench.metrics import summarize
from aiochatstream.bench.plan import Plan
from aiochatstream.bench.prompts import Prompts
from aiochatstream.bench.protocols import PROTOCOLS, Target
from aiochatstream.bench.request import Clock, RequestRecord, send_request

NOTHING_COMPLETED = 1
INTERRUPTED = 130
KEEPALIVE_SECONDS = 2.0
"""Seconds after which an idle connection is not reused. Servers close theirs later (uvicorn: 5 s)."""


@dataclass
class LoadTest:
    """A load test. ``runs`` contains each run from its start, hence also an interrupted one."""

    plan: Plan
    clock: Clock = field(default_factory=Clock)
    progress: bool = True
    runs: list[LoadRun] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompts = Prompts(self.plan.prompts, self.plan.seed)
        self._token_counter = tokens.load_tokenizer(self.plan.tokenizer) if self.plan.tokenizer else None
        self._next_index = 0

    async def run(self) -> None:
        """Probe the server, then execute the runs. Raise ValueError if the probe fails."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        async with connector:
            target = Target(self.plan, PROTOCOLS[self.plan.protocol], connector, self.plan.model)
            await probe(target, self.prompts, self.clock)
            self._next_index += 1
            for level in self.plan.levels:
                if self.plan.warmup:
                    await self._execute(self._new_run(target, level, self.plan.warmup))
                run = self._new_run(target, level, self.plan.requests_at(level), self.plan.duration)
                self.runs.append(run)
                await self._execute(run)

    def _new_run(
        self, target: Target, level: int | None, requests: int | None, duration: float | None = None
    ) -> LoadRun:
        return LoadRun(target, self.prompts, self.clock, level, requests, duration, self._next_index)

    async def _execute(self, run: LoadRun) -> None:
        reporter = asyncio.create_task(report_progress(run)) if self.progress else None
        try:
            await run.run()
        finally:
            if reporter is not None:
                reporter.cancel()
                with suppress(asyncio.CancelledError):
                    await reporter
            self._next_index += run.sent
            tokens.set_token_counts(run.records, self._token_counter)
            if run in self.runs:
                terminal.write(table.render(summarize(run), self.plan), sys.stdout, end="\n\n")


async def probe(target: Target, prompts: Prompts, clock: Clock) -> None:
    """Send one request, unmeasured, and set the model of ``target`` if it is an OpenAI server without one.

    Raise NotReady if the server refuses the request, and another ValueError if the request fails.
    """
    user = target.new_user()
    async with user.session:
        if target.plan.protocol == "openai" and target.model is None:
            target.model = await first_model_name(target, user.session)
        record = RequestRecord(0, user.number, 1)
        await send_request(target, user, prompts[record.index], record, clock)
    if record.outcome == "refused":
        raise NotReady(
            f"{target.endpoint} refused the first request ({record.reason}): the server may be loading or full."
        )
    if record.outcome != "completed":
        raise ValueError(f"{target.endpoint} did not answer the first request: {record.reason}.")


class NotReady(ValueError):
    """Refusal by a server that supports the protocol, but is loading or full."""


async def first_model_name(target: Target, session: aiohttp.ClientSession) -> str:
    """Return the first name in an OpenAI server's list of models. Raise ValueError if there is none."""
    url = target.endpoint.parent.parent / "models"
    try:
        async with session.get(url, headers={"Accept": "application/json"}, allow_redirects=False) as response:
            return str((await response.json())["data"][0]["id"])
    except aiohttp.ClientConnectorError as error:
        raise ValueError(f"{url}: cannot connect: {terminal.os_error_reason(error)}.") from None
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError):
        raise ValueError(f"{url} lists no model. Choose one with --model, if this is an OpenAI server.") from None


async def report_progress(run: LoadRun) -> None:
    """Report the progress of ``run`` on stderr: each second in a terminal, otherwise a line each 10 s."""
    live = sys.stderr.isatty()
    try:
        while True:
            await asyncio.sleep(1 if live else 10)
            line = progress_line(run)
            print(f"{line:100}\r" if live else f"{line}\n", end="", file=sys.stderr, flush=True)
    finally:
        if live:
            print(" " * 100, end="\r", file=sys.stderr, flush=True)


def progress_line(run: LoadRun) -> str:
    """Return the progress of ``run`` as text."""
    outcomes = [record.outcome for record in run.records]
    total = "" if run.requests is None else f" of {run.requests}"
    return (
        f"{run.clock.now() - run.start:5.0f} s: {len(outcomes)}{total} done, {run.unfinished} running, "
        f"{outcomes.count('refused')} refused, {outcomes.count('failed')} failed, "
        f"{sum(len(record.arrivals) for record in run.records)} texts"
    )


def main(arguments: argparse.Namespace, new_event_loop: Callable[[], asyncio.AbstractEventLoop]) -> int:
    """Run the command and return its exit code. Raise ValueError with a sentence for wrong use."""
    test = LoadTest(options.read_plan(arguments))
    if test.plan.html is not None:
        charts.require_matplotlib()
    interrupted = False
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(test.run())
    except KeyboardInterrupt:
        interrupted = True
    write_reports(test, interrupted=interrupted)
    if interrupted:
        return INTERRUPTED
    completed = any(record.outcome == "completed" for run in test.runs for record in run.records)
    return 0 if completed else NOTHING_COMPLETED


def write_reports(test: LoadTest, *, interrupted: bool) -> None:
    """Print the table of a sweep, and write the files of the plan."""
    plan, runs = test.plan, test.runs
    if len(plan.levels) > 1 and runs:
        terminal.write(table.render_sweep([summarize(run) for run in runs]), sys.stdout)
    if interrupted:
        print("Interrupted: results so far." if runs else "Interrupted: no results yet.")
    if plan.json:
        plan.json.write_text(exports.to_json(plan, runs, interrupted=interrupted), encoding="utf-8")
    if plan.csv:
        plan.csv.write_text(exports.to_csv(runs), encoding="utf-8")
    if plan.html:
        plan.html.write_text(html.page(plan, runs), encoding="utf-8")
