"""``python bench/soak.py [URL]``: mixed traffic for minutes or hours, and a verdict."""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Any

import aiohttp
import psutil
from bad_requests import BAD_REQUESTS
from checks import Check, Sample, first, memory_growth, render_traffic, render_verdict
from common import FAILED, INTERRUPTED, OK, WRONG_USE, number, parser, progress, run_script, whole, write_json
from servers import new_event_loop, started
from soak_client import Memory, Talker
from stalled_connections import StallingClients

from aiochatstream.bench.plan import Plan
from aiochatstream.bench.request import Clock, Record
from aiochatstream.terminal import os_error_reason

ENOUGH = 1000
"""Requests of an interrupted run that are worth a verdict."""
SAMPLES = 120
"""How often memory is looked at in a run."""
PREFIX_CACHE = re.compile(r"^aiochatstream_prefix_cache_bytes (\S+)$", re.MULTILINE)
FILES_SLACK = 5
THREADS_SLACK = 5
ACTIONS = {
    "turn": 35,
    "turn, text": 15,
    "regenerate": 10,
    "abort streaming": 10,
    "abort early": 10,
    "slow reader": 1,
    "bad input": 10,
    "look at history": 4,
    "stalled upload": 2,
    "reader of nothing": 2,
    "flood of imports": 1,
}
"""How often each thing is done, of 100."""

IMPORTS, IMPORT_CHARS = 10, 100_000
"""Conversations of a flood, each of a new user who then clears it, and how long they are."""
END_SECONDS = 25.0
"""Seconds in which the server must end, those of its ``shutdown_timeout`` and few more."""

STORY, FEW = "Tell me a long story.", 8
HANG_UPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "/chat_stream": ({"user_input": STORY}, {"user_input": STORY, "params": {"max_new_tokens": FEW}}),
    "/v1/chat/completions": (
        {"messages": [{"role": "user", "content": STORY}], "stream": True},
        {"messages": [{"role": "user", "content": STORY}], "max_tokens": FEW},
    ),
}
"""Where --hang-ups streams begin at last, and what they and the next request there ask for."""
HANG_UP_SECONDS = 0.2
"""From when the last of these has asked until the last has hung up."""

HELP = """\
--clients users talk at once, each with one conversation of up to --turns messages, which is then cleared and begun
anew: turns (as events and as text), answers made again, hanging up within an answer and before it (so that some are
still queued), reading slowly, bad input, uploads that stop, readers that read nothing, floods of imports. There are
more of them than places, so that some are refused; those come again after a moment. At last --hang-ups streams begin
at once, on /chat_stream and then on /v1/chat/completions, whose clients give up one after another within 0.2 s.
Without URL, the script starts a server whose engine echoes without a model; with --queue as large as --hang-ups, all
of these find a place there.

the verdict (exit code 0 if all hold, 1 if one does not):
  server errors     answers with status 500 or above that are no refusal: must be 0
  broken answers    answers that broke off or made no sense, though the client did not hang up: must be 0
  bad input         bad requests that were answered with 2xx: must be 0
  histories         messages in /history that are not as that very client sent them, answers that are not as they were
                    streamed, whole turns that are missing: must be 0
  server alive      its process ended before the traffic did: must be 0
  gauges            answers running and waiting in /get_load at the end: must be 0, and told
  rest              seconds from the moment when --hang-ups streams have hung up until these are 0, and the next request
                    is answered: at most --settle
  memory            growth of resident memory in KiB per 1,000 requests: the slope over the second half of them; at
                    most --max-growth. What /metrics tells of the prefix cache, which has a limit of its own, is taken
                    off. Short runs still fill other caches: judge by minutes
  open files        more of them at the end than at the beginning: at most 5
  threads           more of them at the end than after each client's first turn: at most 5
  end               seconds that the server started here needs to end while clients hold on to it that neither send nor
                    read: at most 25
A figure that could not be had (a server that was given by URL needs --pid for its process, memory, files and threads)
is said to be not measured, and does not count. A reply of 409 is counted, and is no fault: the turn before was still
ending.

exit codes: 0 all hold; 1 something does not; 2 wrong use, or no server there; 130 Ctrl-C (judges what was so far)
"""


class Soak:
    """One run: its traffic, and what came of it."""

    def __init__(self, options: argparse.Namespace, url: str, process: psutil.Process | None) -> None:
        self.options, self.url, self.process = options, url.rstrip("/"), process
        self.counts: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.server_errors: list[str] = []
        self.accepted: list[str] = []
        self.wrong_histories: list[str] = []
        self.samples: list[Sample] = []
        self.files = self.threads = 0
        self.gauges: tuple[int, int] | None = None
        self.rest_s: dict[str, float] = {}
        self.hung_up: dict[str, Counter[str]] = {}
        self.requests = 0
        self.stalling = StallingClients(url)
        self._random = random.Random(options.seed)  # noqa: S311 - nothing here is secret
        self._deadline = 0.0

    async def run(self) -> None:
        """All traffic, then the last looks. Raises ValueError where no server is there."""
        plan = Plan(url=self.url, max_tokens=24, temperature=0.0, timeout=60.0, extra_body={})
        async with aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0) as connector:
            clock = Clock()
            talkers = [
                Talker(Memory(f"c{number}"), plan, connector, clock, self._random)
                for number in range(self.options.clients)
            ]
            try:
                await self._look_at_gauges(connector)
                self.files = self._look("num_fds") or 0
                await asyncio.gather(*(self._settle_in(talker) for talker in talkers))
                self.threads = self._look("num_threads") or 0
                self._deadline = time.monotonic() + self.options.minutes * 60
                await self._talk(talkers, connector)
            finally:
                try:
                    await self._end(talkers, connector)
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                    self.reasons[f"the last looks: {type(error).__name__}"] += 1
                for talker in talkers:
                    await talker.close()

    async def _settle_in(self, talker: Talker) -> None:
        """One whole turn, so that each client has its cookie."""
        for _ in range(200):
            record = await talker.turn("sse")
            self._note("turn", record)
            if record.outcome == "completed":
                return
            await asyncio.sleep(0.1 * self._random.random())
        raise ValueError(f"{self.url} does not answer: {record.reason or record.outcome}.")

    async def _talk(self, talkers: list[Talker], connector: aiohttp.TCPConnector) -> None:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch(connector))
            async with asyncio.TaskGroup() as users:
                for talker in talkers:
                    users.create_task(self._be(talker))
            watching.cancel()

    async def _be(self, talker: Talker) -> None:
        """One client until the end."""
        while time.monotonic() < self._deadline:
            action = self._random.choices(list(ACTIONS), list(ACTIONS.values()))[0]
            try:
                await self._do(talker, action)
                if talker.memory.said >= self.options.turns:
                    await self._look_at_history(talker)
                    await talker.clear()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.reasons[f"{action}: {type(error).__name__}"] += 1
                await asyncio.sleep(0.1)

    async def _do(self, talker: Talker, action: str) -> None:
        if action == "bad input":
            bad = self._random.choice(BAD_REQUESTS)
            status = await talker.misbehave(bad)
            self.requests += 1
            self.counts[action] += 1
            if status >= 500 and status != 503:
                self.server_errors.append(f"{bad.name}: HTTP {status}")
            elif status < 400:
                self.accepted.append(f"{bad.name}: HTTP {status}")
        elif action in ("stalled upload", "reader of nothing"):
            self._stall(action)
            await asyncio.sleep(0.05)
        elif action == "flood of imports":
            await self._flood()
        elif action == "look at history":
            self.counts[action] += 1
            await self._look_at_history(talker)
        else:
            record = await talker.act(action)
            self._note(action, record)
            if record.outcome in ("refused", "failed"):
                await asyncio.sleep(0.02 + 0.2 * self._random.random())

    def _stall(self, action: str) -> None:
        self.requests += 1
        self.counts[action] += 1
        if action == "stalled upload":
            self.stalling.upload()
        else:
            self.stalling.ask()

    async def _flood(self) -> None:
        text = "日" * (IMPORT_CHARS // 2)
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]

        async def import_and_clear() -> None:
            async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
                for path, body in (("/import", {"messages": messages}), ("/clear_context", {})):
                    async with session.post(self.url + path, json=body) as response:
                        await response.read()
                    if response.status >= 500 and response.status != 503:
                        self.server_errors.append(f"{path}: HTTP {response.status}")

        await asyncio.gather(*(import_and_clear() for _ in range(IMPORTS)))
        self.requests += IMPORTS
        self.counts["flood of imports"] += IMPORTS

    def _note(self, action: str, record: Record) -> None:
        self.requests += 1
        self.counts[action] += 1
        if record.status == 409:
            self.outcomes["busy (409)"] += 1
            return
        self.outcomes[record.outcome] += 1
        if record.status is not None and record.status >= 500 and record.outcome != "refused":
            self.server_errors.append(f"{action}: {record.reason}")
        elif record.outcome == "failed":
            self.reasons[record.reason] += 1

    async def _look_at_history(self, talker: Talker) -> None:
        self.requests += 1
        status, wrong = await talker.compare_history()
        if status >= 500:
            self.server_errors.append(f"history: HTTP {status}")
        self.wrong_histories += wrong

    async def _look_at_gauges(self, connector: aiohttp.TCPConnector) -> tuple[int, int]:
        try:
            async with (
                aiohttp.ClientSession(connector=connector, connector_owner=False) as session,
                session.get(f"{self.url}/get_load", timeout=aiohttp.ClientTimeout(10)) as response,
            ):
                workers = (await response.json())["chatstream_workers"]
                return sum(one["processing"] for one in workers), sum(one["waiting"] for one in workers)
        except aiohttp.ClientConnectorError as error:
            raise ValueError(f"{self.url}: cannot connect: {os_error_reason(error)}.") from None
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{self.url}/get_load tells no load: is this an aiochatstream server? ({error})") from None

    def _look(self, what: str) -> Any:
        """A figure of the server process; None where it has ended, or is not known."""
        if self.process is None:
            return None
        try:
            if self.process.status() != psutil.STATUS_ZOMBIE:
                return getattr(self.process, what)()
        except psutil.NoSuchProcess:
            pass
        return None

    async def _prefix_cache_bytes(self, connector: aiohttp.TCPConnector) -> int:
        """What the engine keeps of earlier prompts; 0 where /metrics does not tell."""
        try:
            async with (
                aiohttp.ClientSession(connector=connector, connector_owner=False) as session,
                session.get(f"{self.url}/metrics", timeout=aiohttp.ClientTimeout(10)) as response,
            ):
                told = PREFIX_CACHE.search(await response.text())
                return int(float(told[1])) if told else 0
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0

    async def _watch(self, connector: aiohttp.TCPConnector) -> None:
        """Sample memory; say how far it is."""
        seconds = self.options.minutes * 60
        told = float("-inf")
        while True:
            kept = await self._prefix_cache_bytes(connector)
            memory = self._look("memory_info")
            if memory is not None:
                self.samples.append(Sample(self.requests, memory.rss - kept))
            elif self.process is not None:
                progress("the server process ended")
                self._deadline = time.monotonic()
                return
            left = self._deadline - time.monotonic()
            if told - left >= (1 if sys.stderr.isatty() else 10) or told == float("-inf"):
                told = left
                progress(self._line(seconds - left, seconds), live=True)
            await asyncio.sleep(max(0.02, min(1.0, seconds / SAMPLES)))

    def _line(self, gone: float, seconds: float) -> str:
        rss = f", {self.samples[-1].rss / 2**20:.0f} MiB" if self.samples else ""
        faults = len(self.server_errors) + len(self.wrong_histories) + len(self.accepted) + self.reasons.total()
        refused, aborted = self.outcomes["refused"], self.outcomes["aborted"]
        return (
            f"{gone:.0f} of {seconds:.0f} s: {self.requests} requests, {refused} refused, "
            f"{aborted} hung up, {self.counts['bad input']} bad, {faults} faults{rss}"
        )

    async def _end(self, talkers: list[Talker], connector: aiohttp.TCPConnector) -> None:
        """The server must come to rest now, with every history as it was said."""
        self.stalling.leave()
        await self._come_to_rest(connector)
        if self.options.hang_ups:
            for path, (body, next_body) in HANG_UPS.items():
                self.hung_up[path] = await self._begin_and_hang_up(path, body)
                start = time.monotonic()
                await self._come_to_rest(connector)
                if await self._is_answered(path, next_body):
                    self.rest_s[path] = time.monotonic() - start
        for talker in talkers:
            await self._look_at_history(talker)

    async def _come_to_rest(self, connector: aiohttp.TCPConnector) -> None:
        deadline = time.monotonic() + self.options.settle
        self.gauges = await self._look_at_gauges(connector)
        while self.gauges != (0, 0) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            self.gauges = await self._look_at_gauges(connector)

    async def _begin_and_hang_up(self, path: str, body: dict[str, Any]) -> Counter[str]:
        """Streams of users without a cookie, who give up one after another when all have asked; what came of them."""
        count = self.options.hang_ups
        not_sent = set(range(count))
        all_sent = asyncio.Event()

        async def is_sent(session: Any, context: Any, params: Any) -> None:
            not_sent.discard(context.trace_request_ctx)
            if not not_sent:
                all_sent.set()

        async def ask(number: int) -> str:
            headers = {"Accept": "text/event-stream"}
            async with session.post(self.url + path, json=body, headers=headers, trace_request_ctx=number) as response:
                await response.read()
                return "answered" if response.status == 200 else "refused"

        async def give_up(number: int) -> str:
            asking = asyncio.create_task(ask(number))
            await asyncio.wait_for(all_sent.wait(), 60)
            try:
                return await asyncio.wait_for(asking, HANG_UP_SECONDS * (number + 1) / count)
            except TimeoutError:
                return "hung up"

        trace = aiohttp.TraceConfig()
        trace.on_request_chunk_sent.append(is_sent)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trace_configs=[trace]) as session:
            came = Counter(await asyncio.gather(*map(give_up, range(count))))
        self.counts["hang up at last"] += count
        return came

    async def _is_answered(self, path: str, body: dict[str, Any]) -> bool:
        """Ask until there is an answer, or no time left to come to rest; False where it has no such endpoint for us."""
        deadline = time.monotonic() + self.options.settle
        headers = {"Accept": "application/json"}
        while True:
            async with aiohttp.request("POST", self.url + path, json=body, headers=headers) as response:
                await response.read()
            if response.status in (401, 403, 404):
                return False
            if response.status == 200 or time.monotonic() > deadline:
                return True
            await asyncio.sleep(0.02)

    async def checks(self) -> list[Check]:
        """The verdict. To be asked when the clients' connections are closed."""
        deadline = time.monotonic() + self.options.settle
        files = self._look("num_fds")
        while files is not None and files > self.files + FILES_SLACK and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            files = self._look("num_fds")
        threads = self._look("num_threads")
        return [
            Check(
                "server alive", None if self.process is None else int(threads is None), 0, "the server process ended"
            ),
            Check("server errors", len(self.server_errors), 0, first(self.server_errors)),
            Check("broken answers", self.reasons.total(), 0, first(list(self.reasons))),
            Check("bad input", len(self.accepted), 0, first(self.accepted)),
            Check("histories", len(self.wrong_histories), 0, first(self.wrong_histories)),
            Check("gauges", None if self.gauges is None else sum(self.gauges), 0, needed=True),
            *(Check(f"rest, {path}", self.rest_s.get(path), self.options.settle, "seconds") for path in HANG_UPS),
            Check("memory", memory_growth(self.samples), self.options.max_growth, "KiB per 1,000 requests"),
            Check("open files", None if files is None else files - self.files, FILES_SLACK),
            Check("threads", None if threads is None else threads - self.threads, THREADS_SLACK),
        ]


def read_options() -> argparse.Namespace:
    made = parser("Mixed traffic for minutes or hours, and a verdict.", HELP)
    made.add_argument("url", nargs="?", metavar="URL", help="a running server (default: start one without a model)")
    made.add_argument("--pid", type=whole(1, 2**31), metavar="N", help="its process, for memory, files and threads")
    made.add_argument("--minutes", type=number(0.005, 10_000), default=2.0, metavar="M", help="of traffic (2)")
    made.add_argument("--clients", type=whole(1, 1000), default=32, metavar="N", help="at once (32)")
    made.add_argument("--turns", type=whole(1, 1000), default=8, metavar="N", help="messages of a conversation (8)")
    made.add_argument("--slots", type=whole(1, 1024), default=4, metavar="N", help="of the server started here (4)")
    made.add_argument("--queue", type=whole(0, 10_000), default=12, metavar="N", help="of the server started here (12)")
    made.add_argument(
        "--settle", type=number(0, 3600), default=5.0, metavar="S", help="to come to rest after the traffic (5)"
    )
    made.add_argument(
        "--hang-ups", type=whole(0, 1000), default=200, metavar="N", help="streams that hang up at last (200)"
    )
    made.add_argument("--seed", type=whole(0, 2**31), default=0, metavar="N", help="of the traffic (0)")
    made.add_argument(
        "--max-growth", type=number(0, 1e9), default=512.0, metavar="KIB", help="KiB per 1,000 requests (512)"
    )
    options = made.parse_args()
    if options.pid is not None and options.url is None:
        made.error("--pid goes with a URL: the server started here is known")
    if options.url is not None:
        try:
            Plan(url=options.url, extra_body={})
        except ValueError as error:
            made.error(str(error))
    return options


@contextmanager
def served(options: argparse.Namespace) -> Iterator[tuple[str, psutil.Process | None]]:
    """The server that was named, or one of our own."""
    with ExitStack() as stack:
        if options.url is not None:
            try:
                process = None if options.pid is None else psutil.Process(options.pid)
            except psutil.NoSuchProcess:
                raise ValueError(f"--pid {options.pid}: there is no such process.") from None
            yield options.url, process
            return
        arguments = ("--slots", str(options.slots), "--queue", str(options.queue), "--pieces", "24")
        server = stack.enter_context(started("words", *arguments))
        yield server.url, server.process


def main() -> int:
    options = read_options()
    code, soak = OK, None
    try:
        with served(options) as (url, process):
            soak = Soak(options, url, process)
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                try:
                    runner.run(soak.run())
                except KeyboardInterrupt:
                    print("Interrupted: this is what was measured so far.")
                    code = INTERRUPTED
                checks = runner.run(soak.checks())
            with suppress(OSError):  # it may have ended
                for _ in range(10):
                    soak.stalling.upload()
                    soak.stalling.ask()
            start = time.monotonic()
        took = None if options.url is not None else time.monotonic() - start
        checks.append(Check("end", took, END_SECONDS, "seconds"))
        soak.stalling.leave()
    except (ValueError, psutil.Error, RuntimeError) as error:
        print(f"soak.py: {error}", file=sys.stderr)
        return WRONG_USE
    holds = all(check.holds for check in checks)
    enough = code != INTERRUPTED or soak.requests >= ENOUGH
    word = "FAILED" if not holds else "all holds" if enough else "too little was seen"
    print(render_traffic(soak.counts, soak.outcomes), render_verdict(checks, word), sep="\n\n")
    for path, seconds in soak.rest_s.items():
        came = ", ".join(f"{count} {what}" for what, count in soak.hung_up[path].most_common())
        print(f"{path}, {options.hang_ups} streams at once ({came}): at rest and answering after {seconds:.2f} s")
    results = {
        "verdict": {
            "holds": holds,
            "word": word,
            "checks": [{**asdict(check), "word": check.word} for check in checks],
        },
        "requests": soak.requests,
        "actions": soak.counts,
        "outcomes": soak.outcomes,
        "faults": [*soak.server_errors, *soak.reasons, *soak.accepted, *soak.wrong_histories][:100],
        "rest_s": soak.rest_s,
        "hung_up": soak.hung_up,
        "samples": [asdict(sample) for sample in soak.samples],
    }
    write_json(options, "soak", results, interrupted=code == INTERRUPTED)
    return code or (OK if holds else FAILED)


if __name__ == "__main__":
    run_script(main)
