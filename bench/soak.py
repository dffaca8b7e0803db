"""``python bench/soak.py [URL]``: test a server with mixed traffic for minutes or hours."""

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
from types import SimpleNamespace
from typing import Any

import aiohttp
import psutil
from bad_requests import BAD_REQUESTS
from checks import Check, Sample, memory_growth, render_checks, render_traffic
from common import FAILED, INTERRUPTED, OK, WRONG_USE, integer, new_parser, number, progress, run_script, write_json
from servers import new_event_loop, running_server
from soak_client import ExpectedHistory, SoakClient
from soak_pressure import CONTEXT, MEMORY_CONTEXTS, Pressure
from stalled_connections import StalledConnections

from aiochatstream.bench.plan import Plan
from aiochatstream.bench.request import Clock, RequestRecord
from aiochatstream.terminal import os_error_reason

MIN_REQUESTS = 1000
"""Minimum requests of an interrupted run for a result."""
SAMPLES = 120
"""Memory samples in a run."""
FAMILIES = ("llama", "lfm2")
"""Tiny models of --pressure: with keys and values only, and with states as well."""
PREFIX_CACHE = re.compile(r"^aiochatstream_prefix_cache_bytes (\S+)$", re.MULTILINE)
MAX_MORE_FILES = 5
MAX_MORE_THREADS = 5
ACTIONS = {
    "turn": 35,
    "turn, text": 15,
    "regenerate": 10,
    "abort streaming": 10,
    "abort early": 10,
    "slow reader": 1,
    "bad input": 10,
    "check history": 4,
    "stalled upload": 2,
    "stalled reader": 2,
    "flood of imports": 1,
}
"""Relative frequency of each action, in percent."""

IMPORTS, IMPORT_CHARS = 10, 100_000
"""Conversations of a flood, each of a new user who then clears it, and their length."""
MAX_SHUTDOWN_SECONDS = 25.0
"""Maximum seconds of the server's shutdown: its ``shutdown_timeout`` and a few more."""

STORY, SHORT = "Tell me a long story.", 8
DISCONNECT_BODIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "/chat_stream": ({"user_input": STORY}, {"user_input": STORY, "params": {"max_new_tokens": SHORT}}),
    "/v1/chat/completions": (
        {"messages": [{"role": "user", "content": STORY}], "stream": True},
        {"messages": [{"role": "user", "content": STORY}], "max_tokens": SHORT},
    ),
}
"""Endpoints of the --hang-ups streams, with the bodies of these requests and of the request after them."""
DISCONNECT_SECONDS = 0.2
"""Seconds between the last request of these and the last disconnect."""

HELP = """\
--clients users send requests concurrently, each in a conversation of up to --turns messages, which is then cleared and
restarted: turns (as events and as text), regenerated answers, disconnects during an answer and before it (some while
queued), slow reading, bad input, stalled uploads, stalled readers, floods of imports. There are more clients than
places, so that the server refuses some requests; their clients retry after a moment. At the end, --hang-ups streams
start concurrently, on /chat_stream and then on /v1/chat/completions, whose clients disconnect one after another within
0.2 s. Without URL, the script starts a server whose engine echoes without a model. With a --queue as large as
--hang-ups, it accepts all these streams.

With --pressure, the server has a tiny random model in float32 (llama has keys and values only, lfm2 states as well),
memory for 4 contexts of 512 tokens, and 16 slots. As many more clients as slots send fixed prompts, of which some
continue each other and some fill the context, and disconnect during 3 of 10 answers. Before, a server without this
limit answers the same prompts, one at a time.

checks (exit code 0 if all pass, 1 otherwise):
  server errors     responses with status 500 or above, except refusals: must be 0
  broken answers    incomplete or invalid answers, without a disconnect by the client: must be 0
  bad input         bad requests that were answered with 2xx: must be 0
  histories         differences between /history and the messages that the client sent, the answers that it received, or
                    its completed turns: must be 0
  server alive      1 if the server process exited before the end: must be 0
  gauges            running and waiting answers in /get_load at the end: must be 0, and known
  rest              seconds from the last disconnect of the --hang-ups streams until the gauges are 0 and the next
                    request is answered: at most --settle
  memory            growth of resident memory in KiB per 1,000 requests: the slope over the second half of the requests;
                    at most --max-growth. The size of the prefix cache in /metrics, which has its own limit, is
                    subtracted. Other caches grow in the first minutes: run longer
  open files        increase between start and end: at most 5
  threads           increase between the first turns of the clients and the end: at most 5
  answers           with --pressure: answers to fixed prompts that differ from those without pressure, as far as they
                    were read, or fail: must be 0, and at least one answer compared
  memory in use     with --pressure: tokens that running answers occupy at the end: must be 0
  memory lost       with --pressure: tokens that are neither free nor cached at the end: must be 0
  no pressure       with --pressure: 1 if no request ever waited for memory: must be 0
  end               seconds until a server that the script started exits, while stalled clients are connected: at
                    most 25
Unknown values (a server at a URL requires --pid for its process, memory, files and threads) are reported as not
measured and pass. Responses with status 409 are counted and are not faults: the turn before was still ending.

exit codes: 0 all passed; 1 a check failed; 2 wrong use, or no server; 130 Ctrl-C (checks the results so far)
"""


class Soak:
    """One soak test: its traffic and its results."""

    def __init__(
        self,
        options: argparse.Namespace,
        url: str,
        process: psutil.Process | None,
        pressure: Pressure | None = None,
    ) -> None:
        self.pressure = pressure
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
        self.disconnects: dict[str, Counter[str]] = {}
        self.requests = 0
        self.stalled = StalledConnections(url)
        self._random = random.Random(options.seed)  # noqa: S311 - not security-relevant
        self._deadline = 0.0

    async def run(self) -> None:
        """Generate the traffic, then collect the values of the checks. Raise ValueError if there is no server."""
        plan = Plan(url=self.url, max_tokens=24, temperature=0.0, timeout=60.0, extra_body={})
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)
        async with connector:
            clock = Clock()
            clients = [
                SoakClient(ExpectedHistory(f"c{number}"), plan, connector, clock, self._random)
                for number in range(self.options.clients)
            ]
            try:
                await self._read_gauges(connector)
                self.files = self._process_value("num_fds") or 0
                await asyncio.gather(*(self._first_turn(client) for client in clients))
                self.threads = self._process_value("num_threads") or 0
                self._deadline = time.monotonic() + self.options.minutes * 60
                await self._generate_traffic(clients, connector)
            finally:
                try:
                    await self._finish(clients, connector)
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                    self.reasons[f"final checks: {type(error).__name__}"] += 1
                for client in clients:
                    await client.close()

    async def _first_turn(self, client: SoakClient) -> None:
        """Complete a turn, so that the client has its cookie."""
        for _ in range(200):
            record = await client.turn("sse")
            self._count("turn", record)
            if record.outcome == "completed":
                return
            await asyncio.sleep(0.1 * self._random.random())
        raise ValueError(f"{self.url} does not answer: {record.reason or record.outcome}.")

    async def _generate_traffic(self, clients: list[SoakClient], connector: aiohttp.TCPConnector) -> None:
        async with asyncio.TaskGroup() as group:
            monitor = group.create_task(self._monitor(connector))
            async with asyncio.TaskGroup() as users:
                for client in clients:
                    users.create_task(self._run_client(client))
                for _ in range(self.options.slots if self.pressure is not None else 0):
                    users.create_task(self._run_fixed_prompts(connector))
            monitor.cancel()

    async def _run_client(self, client: SoakClient) -> None:
        """Execute random actions until the deadline."""
        while time.monotonic() < self._deadline:
            action = self._random.choices(list(ACTIONS), list(ACTIONS.values()))[0]
            try:
                await self._execute(client, action)
                if len(client.history.answers) >= self.options.turns:
                    await self._check_history(client)
                    await client.clear()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.reasons[f"{action}: {type(error).__name__}"] += 1
                await asyncio.sleep(0.1)

    async def _run_fixed_prompts(self, connector: aiohttp.TCPConnector) -> None:
        """Send fixed prompts until the deadline, first one that fills the context: not all of these fit at once."""
        number: int | None = -1
        async with aiohttp.ClientSession(connector=connector, connector_owner=False) as session:
            while self.pressure is not None and (number is not None or time.monotonic() < self._deadline):
                self.requests += 1
                self.counts["fixed prompt"] += 1
                try:
                    result = await self.pressure.ask(session, self.url, number)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    self.reasons[f"fixed prompt: {type(error).__name__}"] += 1
                    result = "failed"
                number = None
                if result in ("refused", "failed"):
                    await asyncio.sleep(0.02 + 0.2 * self._random.random())

    async def _execute(self, client: SoakClient, action: str) -> None:
        if action == "bad input":
            request = self._random.choice(BAD_REQUESTS)
            status = await client.send_bad_request(request)
            self.requests += 1
            self.counts[action] += 1
            if status >= 500 and status != 503:
                self.server_errors.append(f"{request.name}: HTTP {status}")
            elif status < 400:
                self.accepted.append(f"{request.name}: HTTP {status}")
        elif action in ("stalled upload", "stalled reader"):
            self._stall(action)
            await asyncio.sleep(0.05)
        elif action == "flood of imports":
            await self._flood()
        elif action == "check history":
            self.counts[action] += 1
            await self._check_history(client)
        else:
            record = await client.act(action)
            self._count(action, record)
            if record.outcome in ("refused", "failed"):
                await asyncio.sleep(0.02 + 0.2 * self._random.random())

    def _stall(self, action: str) -> None:
        self.requests += 1
        self.counts[action] += 1
        if action == "stalled upload":
            self.stalled.upload()
        else:
            self.stalled.request()

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

    def _count(self, action: str, record: RequestRecord) -> None:
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

    async def _check_history(self, client: SoakClient) -> None:
        self.requests += 1
        status, differences = await client.check_history()
        if status >= 500:
            self.server_errors.append(f"history: HTTP {status}")
        self.wrong_histories += differences

    async def _read_gauges(self, connector: aiohttp.TCPConnector) -> tuple[int, int]:
        try:
            async with (
                aiohttp.ClientSession(connector=connector, connector_owner=False) as session,
                session.get(f"{self.url}/get_load", timeout=aiohttp.ClientTimeout(10)) as response,
            ):
                workers = (await response.json())["chatstream_workers"]
                return sum(worker["processing"] for worker in workers), sum(worker["waiting"] for worker in workers)
        except aiohttp.ClientConnectorError as error:
            raise ValueError(f"{self.url}: cannot connect: {os_error_reason(error)}.") from None
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{self.url}/get_load: not an aiochatstream server ({error}).") from None

    def _process_value(self, method: str) -> Any:
        """Return the result of a method of psutil.Process; None if the process has exited or is unknown."""
        if self.process is None:
            return None
        try:
            if self.process.status() != psutil.STATUS_ZOMBIE:
                return getattr(self.process, method)()
        except psutil.NoSuchProcess:
            pass
        return None

    async def _prefix_cache_bytes(self, connector: aiohttp.TCPConnector) -> int:
        """Return the size of the engine's prefix cache; 0 if /metrics does not contain it."""
        try:
            async with (
                aiohttp.ClientSession(connector=connector, connector_owner=False) as session,
                session.get(f"{self.url}/metrics", timeout=aiohttp.ClientTimeout(10)) as response,
            ):
                text = await response.text()
                if self.pressure is not None:
                    self.pressure.record_gauges(text)
                match = PREFIX_CACHE.search(text)
                return int(float(match[1])) if match else 0
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0

    async def _monitor(self, connector: aiohttp.TCPConnector) -> None:
        """Sample memory and report progress."""
        seconds = self.options.minutes * 60
        reported = float("-inf")
        while True:
            cache_bytes = await self._prefix_cache_bytes(connector)
            memory = self._process_value("memory_info")
            if memory is not None:
                self.samples.append(Sample(self.requests, memory.rss - cache_bytes))
            elif self.process is not None:
                progress("the server process exited")
                self._deadline = time.monotonic()
                return
            left = self._deadline - time.monotonic()
            if reported - left >= (1 if sys.stderr.isatty() else 10) or reported == float("-inf"):
                reported = left
                progress(self._progress_line(seconds - left, seconds), live=True)
            await asyncio.sleep(max(0.02, min(1.0, seconds / SAMPLES)))

    def _progress_line(self, elapsed: float, seconds: float) -> str:
        rss = f", {self.samples[-1].rss / 2**20:.0f} MiB" if self.samples else ""
        faults = len(self.server_errors) + len(self.wrong_histories) + len(self.accepted) + self.reasons.total()
        refused, aborted = self.outcomes["refused"], self.outcomes["aborted"]
        return (
            f"{elapsed:.0f} of {seconds:.0f} s: {self.requests} requests, {refused} refused, "
            f"{aborted} aborted, {self.counts['bad input']} bad, {faults} faults{rss}"
        )

    async def _finish(self, clients: list[SoakClient], connector: aiohttp.TCPConnector) -> None:
        """Wait for the server to become idle, test the disconnects, and check all histories."""
        self.stalled.close()
        await self._wait_idle(connector)
        if self.options.hang_ups:
            for path, (body, next_body) in DISCONNECT_BODIES.items():
                self.disconnects[path] = await self._start_and_disconnect(path, body)
                start = time.monotonic()
                await self._wait_idle(connector)
                if await self._wait_answered(path, next_body):
                    self.rest_s[path] = time.monotonic() - start
        for client in clients:
            await self._check_history(client)
        await self._prefix_cache_bytes(connector)

    async def _wait_idle(self, connector: aiohttp.TCPConnector) -> None:
        deadline = time.monotonic() + self.options.settle
        self.gauges = await self._read_gauges(connector)
        while self.gauges != (0, 0) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            self.gauges = await self._read_gauges(connector)

    async def _start_and_disconnect(self, path: str, body: dict[str, Any]) -> Counter[str]:
        """Start streams of new users, who disconnect one after another once all have sent their requests.

        Return the number of streams by outcome.
        """
        count = self.options.hang_ups
        not_sent = set(range(count))
        all_sent = asyncio.Event()

        async def on_sent(
            session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestChunkSentParams
        ) -> None:
            not_sent.discard(context.trace_request_ctx)
            if not not_sent:
                all_sent.set()

        async def send(number: int) -> str:
            headers = {"Accept": "text/event-stream"}
            async with session.post(self.url + path, json=body, headers=headers, trace_request_ctx=number) as response:
                await response.read()
                return "answered" if response.status == 200 else "refused"

        async def send_and_disconnect(number: int) -> str:
            request = asyncio.create_task(send(number))
            await asyncio.wait_for(all_sent.wait(), 60)
            # 0 for the last sender, which cannot be answered yet.
            seconds = DISCONNECT_SECONDS * (count - 1 - number) / count
            try:
                return await asyncio.wait_for(request, seconds)
            except TimeoutError:
                return "disconnected"

        trace = aiohttp.TraceConfig()
        trace.on_request_chunk_sent.append(on_sent)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trace_configs=[trace]) as session:
            outcomes = Counter(await asyncio.gather(*map(send_and_disconnect, range(count))))
        self.counts["disconnect at the end"] += count
        return outcomes

    async def _wait_answered(self, path: str, body: dict[str, Any]) -> bool:
        """Repeat a request until it is answered or --settle has passed. Return False if the endpoint is unavailable."""
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
        """Return the checks. Call this when all connections of the clients are closed."""
        deadline = time.monotonic() + self.options.settle
        files = self._process_value("num_fds")
        while files is not None and files > self.files + MAX_MORE_FILES and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            files = self._process_value("num_fds")
        threads = self._process_value("num_threads")
        return [
            Check(
                "server alive", None if self.process is None else int(threads is None), 0, "the server process exited"
            ),
            Check("server errors", len(self.server_errors), 0, _first(self.server_errors)),
            Check("broken answers", self.reasons.total(), 0, _first(list(self.reasons))),
            Check("bad input", len(self.accepted), 0, _first(self.accepted)),
            Check("histories", len(self.wrong_histories), 0, _first(self.wrong_histories)),
            Check("gauges", None if self.gauges is None else sum(self.gauges), 0, required=True),
            *(
                Check(f"rest, {path}", self.rest_s.get(path), self.options.settle, "seconds")
                for path in DISCONNECT_BODIES
            ),
            *([] if self.pressure is None else self.pressure.checks()),
            Check("memory", memory_growth(self.samples), self.options.max_growth, "KiB per 1,000 requests"),
            Check("open files", None if files is None else files - self.files, MAX_MORE_FILES),
            Check("threads", None if threads is None else threads - self.threads, MAX_MORE_THREADS),
        ]


def _first(sentences: list[str]) -> str:
    return sentences[0][:100] if sentences else ""


def read_options() -> argparse.Namespace:
    parser = new_parser("Test a server with mixed traffic for minutes or hours.", HELP)
    add = parser.add_argument
    add("url", nargs="?", metavar="URL", help="a running server (default: start a server without a model)")
    add("--pid", type=integer(1, 2**31), metavar="N", help="process of URL, for memory, files and threads")
    add("--minutes", type=number(0.005, 10_000), default=2.0, metavar="M", help="duration of the traffic (2)")
    add("--clients", type=integer(1, 1000), metavar="N", help="concurrent clients (32; with --pressure 16)")
    add("--turns", type=integer(1, 1000), default=8, metavar="N", help="messages of a conversation (8)")
    add("--slots", type=integer(1, 1024), metavar="N", help="slots of the started server (4; with --pressure 16)")
    add("--queue", type=integer(0, 10_000), metavar="N", help="queue of the started server (12; with --pressure 24)")
    add(
        "--settle",
        type=number(0, 3600),
        default=5.0,
        metavar="S",
        help="maximum seconds until the server is idle after the traffic (5)",
    )
    add(
        "--hang-ups",
        type=integer(0, 1000),
        default=200,
        metavar="N",
        help="streams that disconnect at the end (200)",
    )
    add("--pressure", choices=FAMILIES, help="start a server with a tiny model and little memory")
    add("--seed", type=integer(0, 2**31), default=0, metavar="N", help="seed of the traffic (0)")
    add(
        "--max-growth",
        type=number(0, 1e9),
        default=512.0,
        metavar="KIB",
        help="maximum growth of memory in KiB per 1,000 requests (512)",
    )
    options = parser.parse_args()
    if options.pid is not None and options.url is None:
        parser.error("--pid requires a URL: the process of the started server is known")
    if options.pressure is not None and options.url is not None:
        parser.error("--pressure starts its own server, so it does not accept a URL")
    for name, usual, with_pressure in (("clients", 32, 16), ("slots", 4, 16), ("queue", 12, 24)):
        if getattr(options, name) is None:
            setattr(options, name, usual if options.pressure is None else with_pressure)
    if options.url is not None:
        try:
            Plan(url=options.url, extra_body={})
        except ValueError as error:
            parser.error(str(error))
    return options


@contextmanager
def target_server(options: argparse.Namespace) -> Iterator[tuple[str, psutil.Process | None]]:
    """Yield URL and process of the server at URL, or of a server started for the block."""
    with ExitStack() as stack:
        if options.url is not None:
            try:
                process = None if options.pid is None else psutil.Process(options.pid)
            except psutil.NoSuchProcess:
                raise ValueError(f"--pid {options.pid}: no such process.") from None
            yield options.url, process
            return
        arguments = ("--slots", str(options.slots), "--queue", str(options.queue))
        if options.pressure is None:
            server = stack.enter_context(running_server("words", *arguments, "--chunks", "24"))
        else:
            memory = ("--memory-contexts", str(MEMORY_CONTEXTS))
            server = stack.enter_context(running_server("tiny", *arguments, *tiny_options(options), *memory))
        yield server.url, server.process


def tiny_options(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the options of a server with a tiny model."""
    return "--family", options.pressure, "--context", str(CONTEXT)


def read_pressure(options: argparse.Namespace) -> Pressure | None:
    """Return the fixed prompts with their answers without pressure, if --pressure is set."""
    if options.pressure is None:
        return None
    progress("asking a server without pressure")
    pressure = Pressure(random.Random(options.seed))  # noqa: S311 - not security-relevant
    with running_server("tiny", *tiny_options(options)) as server:
        asyncio.run(pressure.read_expected(server.url))
    return pressure


def main() -> int:
    options = read_options()
    code, soak = OK, None
    try:
        pressure = read_pressure(options)
        with target_server(options) as (url, process):
            soak = Soak(options, url, process, pressure)
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                try:
                    runner.run(soak.run())
                except KeyboardInterrupt:
                    print("Interrupted: results so far.")
                    code = INTERRUPTED
                checks = runner.run(soak.checks())
            with suppress(OSError):  # the server may have exited
                for _ in range(10):
                    soak.stalled.upload()
                    soak.stalled.request()
            start = time.monotonic()
        seconds = None if options.url is not None else time.monotonic() - start
        checks.append(Check("end", seconds, MAX_SHUTDOWN_SECONDS, "seconds"))
        soak.stalled.close()
    except (ValueError, psutil.Error, RuntimeError) as error:
        print(f"soak.py: {error}", file=sys.stderr)
        return WRONG_USE
    passed = all(check.passed for check in checks)
    enough = code != INTERRUPTED or soak.requests >= MIN_REQUESTS
    word = "FAILED" if not passed else "all passed" if enough else "too few requests"
    print(render_traffic(soak.counts, soak.outcomes), render_checks(checks, word), sep="\n\n")
    for path, rest in soak.rest_s.items():
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in soak.disconnects[path].most_common())
        print(f"{path}, {options.hang_ups} concurrent streams ({outcomes}): idle and answering after {rest:.2f} s")
    if pressure is not None:
        print(pressure.render())
    results = {
        "verdict": {
            "holds": passed,
            "word": word,
            "checks": [check.to_json() for check in checks],
        },
        "requests": soak.requests,
        "actions": soak.counts,
        "outcomes": soak.outcomes,
        "faults": [*soak.server_errors, *soak.reasons, *soak.accepted, *soak.wrong_histories][:100],
        "rest_s": soak.rest_s,
        "hung_up": soak.disconnects,
        "samples": [asdict(sample) for sample in soak.samples],
        "pressure": None if pressure is None else pressure.to_json(),
    }
    write_json(options, "soak", results, interrupted=code == INTERRUPTED)
    return code or (OK if passed else FAILED)


if __name__ == "__main__":
    run_script(main)
