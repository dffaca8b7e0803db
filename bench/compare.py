"""``python bench/compare.py SERVER...``: compare several servers with the same requests, in turn."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from common import (
    FAILED,
    INTERRUPTED,
    OK,
    WRONG_USE,
    integer,
    integers,
    new_parser,
    number,
    progress,
    run_script,
    write_json,
)
from peers import PEERS, PRESETS
from ratios import Round, ratios, remarks, render, unique
from server_process import ServerProcess, is_listening, running_process
from server_specs import ServerSpec, parse_spec
from servers import new_event_loop

from aiochatstream.bench import tokens
from aiochatstream.bench.command import KEEPALIVE_SECONDS, NotReady, probe
from aiochatstream.bench.load import LoadRun
from aiochatstream.bench.metrics import summarize
from aiochatstream.bench.plan import Plan
from aiochatstream.bench.prompts import Prompts
from aiochatstream.bench.protocols import PROTOCOLS, Target
from aiochatstream.bench.request import Clock
from aiochatstream.extras import MissingExtra

WARM_UP = 2
"""Concurrent unmeasured requests after a server has answered its first."""
POLL_SECONDS = 0.2

HELP = f"""\
SERVER is one of
  NAME of a preset             {", ".join(PRESETS)}
  NAME[:PROTOCOL]=URL          a running server
  NAME[:PROTOCOL]=COMMAND      a command line that starts a server, with {{port}} for the port to listen on
PROTOCOL is sse (default), text, openai or chatstream, as in `aiochatstream bench --help`, which defines the metrics.

A started server listens on its own port and is ready when it has answered a request; {WARM_UP} more requests warm it
up. It is paused (SIGSTOP) during the turns of other servers, so that it uses no CPU time, but remains in memory. In the
end it is stopped with all its child processes. Servers at URLs are not paused and should be idle otherwise.

At each concurrency, the servers take turns (A B C A B C ...), --rounds times, with the same prompts. N concurrent users
each repeat their request as soon as the answer has ended: greedy decoding, --max-tokens tokens, ignoring the model's
end token if the server supports it. Each round has its own prompts, so that no cache contains them (unless --prompts
FILE has too few lines and is repeated). Rounds that exceed --round-seconds are cut short and are in no ratio. Tables
contain medians of the rounds (times in milliseconds), and ratios of each server to the baseline in the same round:
their median, with minimum and maximum in parentheses. Tokens are counted by the server, otherwise by the model's
tokenizer (with a preset or --model), otherwise as one per text.

Presets run in their own environments, created by `python bench/peers.py install NAME` (`python bench/peers.py lines`
prints the commands). Presets that are not installed, or do not start, are skipped.

exit codes: 0 measured two servers or more; 1 fewer; 2 wrong use, or a failing URL or COMMAND; 130 Ctrl-C (prints the
results so far)
"""


@dataclass
class ComparedServer:
    """A server and its state in the comparison. ``reason``: why it is not measured, or not any further."""

    spec: ServerSpec
    target: Target | None = None
    process: ServerProcess | None = None
    reason: str = ""
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return self.spec.name

    def start_order(self) -> tuple[bool, bool]:
        """Return a sort key: servers that start quickly, or may be wrong use, come first."""
        return not self.spec.custom, self.spec.command != ""


class Comparison:
    """All servers, and the rounds so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.servers = [ComparedServer(spec, reason=spec.missing) for spec in options.specs]
        self.rounds: list[Round] = []
        self._clock = Clock()
        self._prompts = Prompts(options.prompts, options.seed)
        self._model = ModelFiles(options.model)
        self._token_counter: tokens.TokenCounter | None = None

    async def run(self) -> None:
        """Start, measure and stop the servers. Raise ValueError if a server that the user specified fails."""
        if self.options.model or any(server.spec.model_placeholder and not server.reason for server in self.servers):
            self._token_counter = tokens.load_tokenizer(self._model.folder)
        with ExitStack() as processes:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
            try:
                async with connector:
                    for server in sorted(self.servers, key=ComparedServer.start_order):
                        if not server.reason:
                            await self._prepare(server, connector, processes)
                    await self._run_rounds()
            finally:
                for server in self.servers:
                    if server.process is not None and not server.process.exit_reason:
                        progress(f"stopping {server.name}")
                        server.process.terminate()

    async def _prepare(self, server: ComparedServer, connector: aiohttp.TCPConnector, processes: ExitStack) -> None:
        try:
            if server.spec.command:
                self._start(server, processes)
            server.target = self._target(server, connector)
            async with asyncio.timeout(self.options.start_seconds):
                await self._wait_ready(server, server.target)
                await self._new_run(server.target, WARM_UP, WARM_UP, first=1).run()
            if server.process is not None:
                server.process.pause()
        except (OSError, RuntimeError, ValueError) as error:  # TimeoutError is an OSError
            server.reason = str(error) or f"not ready within {self.options.start_seconds:g} s"
        if server.reason and server.spec.custom:
            raise ValueError(f"{server.name}: {server.reason}")
        if server.reason:
            progress(f"{server.name} is not measured: {server.reason}")
            if server.process is not None:
                server.process.stop()

    def _start(self, server: ComparedServer, processes: ExitStack) -> None:
        spec, options = server.spec, self.options
        progress(f"starting {server.name}")
        placeholders = {
            **spec.placeholders,
            "clients": str(max(options.concurrency)),
            "max_tokens": str(options.max_tokens),
        }
        if spec.model_placeholder:
            placeholders |= {"model": self._model.folder, "gguf": self._model.gguf}
        if spec.model_placeholder == "{gguf}" and not self._model.gguf:
            raise RuntimeError("requires a .gguf file")
        server.process = processes.enter_context(running_process(spec.command, placeholders, spec.env))

    def _target(self, server: ComparedServer, connector: aiohttp.TCPConnector) -> Target:
        spec, options = server.spec, self.options
        has_params = spec.protocol != "chatstream"
        plan = Plan(
            url=server.process.url if server.process else spec.url,
            protocol=spec.protocol,
            model=self._model.folder if spec.names_model else None,
            max_tokens=options.max_tokens if has_params else None,
            temperature=0.0 if has_params else None,
            ignore_eos=spec.ignore_eos,
            timeout=2 * max(options.round_seconds, options.start_seconds),  # these limits apply first
            tokenizer=self._model.folder if self._token_counter else None,
            extra_body=dict(spec.extra_body),
        )
        return Target(plan, PROTOCOLS[plan.protocol], connector, plan.model)

    async def _wait_ready(self, server: ComparedServer, target: Target) -> None:
        """Wait until the server answers. Raise RuntimeError if its process exits before."""
        process = server.process
        while process is not None and not is_listening(process.port):
            if process.exit_reason:
                raise RuntimeError(process.exit_reason)
            await asyncio.sleep(POLL_SECONDS)
        while True:
            try:
                await probe(target, self._prompts, self._clock)
                return
            except ValueError as error:
                if process is None:
                    raise
                if process.exit_reason:
                    raise RuntimeError(process.exit_reason) from None
                if not isinstance(error, NotReady):
                    raise
            await asyncio.sleep(POLL_SECONDS)

    async def _run_rounds(self) -> None:
        first = 1 + WARM_UP
        for level in self.options.concurrency:
            requests = level * self.options.requests_per_client
            for turn in range(1, self.options.rounds + 1):
                for server in self.servers:
                    if not server.reason and server.target is not None:
                        progress(f"concurrency {level}, round {turn} of {self.options.rounds}: {server.name}")
                        await self._run_round(server, self._new_run(server.target, level, requests, first), turn)
                first += requests

    def _new_run(self, target: Target, level: int, requests: int, first: int) -> LoadRun:
        return LoadRun(target, self._prompts, self._clock, level, requests, first_index=first)

    async def _run_round(self, server: ComparedServer, run: LoadRun, turn: int) -> None:
        if server.process is not None:
            server.process.resume()
        cut = False
        try:
            async with asyncio.timeout(self.options.round_seconds):
                await run.run()
        except TimeoutError:
            cut = True
        tokens.set_token_counts(run.records, self._token_counter)
        summary = summarize(run)
        if server.process is not None:
            if summary.failed or cut:
                await server.process.settle()
            server.reason = server.process.exit_reason
            server.process.pause()
        server.faults.update(summary.reasons)
        self.rounds.append(Round.of(server.name, summary.concurrency or 0, turn, summary, cut=cut))

    @property
    def model_name(self) -> str | None:
        """Name of the model; None if no server uses it."""
        return Path(self._model.folder).name if self._token_counter else None

    def to_json(self) -> dict[str, Any]:
        measured = {round_.server for round_ in self.rounds}
        return {
            "servers": [
                {
                    "name": server.name,
                    "title": server.spec.title,
                    "protocol": server.spec.protocol,
                    "versions": server.spec.versions,
                    "command": server.spec.source,
                    "note": server.spec.note,
                    "measured": server.name in measured,
                    "reason": server.reason or None,
                    "faults": server.faults,
                }
                for server in self.servers
            ],
            "rounds": [asdict(round_) for round_ in self.rounds],
            "ratios": ratios(self.rounds, self.baseline),
            "remarks": self._remarks(),
        }

    @property
    def baseline(self) -> str:
        """Name of --baseline, otherwise of the first measured server."""
        measured = unique(round_.server for round_ in self.rounds)
        return self.options.baseline or (measured[0] if measured else "")

    def _remarks(self) -> list[str]:
        lines = remarks(self.rounds, self.options.max_tokens)
        measured = {round_.server for round_ in self.rounds}
        if measured and self.baseline not in measured:
            lines.append(f"no ratios: the baseline {self.baseline} was not measured")
        elif measured and not self.options.baseline and self.baseline != self.servers[0].name:
            lines.append(f"{self.servers[0].name} was not measured: the baseline is {self.baseline}")
        return lines

    def render(self) -> str:
        parts = [render(self.rounds, self.baseline) or "Nothing was measured."]
        notes = [
            f"{server.name}: {server.spec.note}" for server in self.servers if server.spec.note and not server.reason
        ]
        notes += self._remarks()
        for server in self.servers:
            measured = any(round_.server == server.name for round_ in self.rounds)
            if server.reason:
                extent = "not measured further" if measured else "not measured"
                notes.append(f"{server.name}: {extent}: {server.reason}")
            notes += [f"{server.name}: {count} x {reason}" for reason, count in server.faults.most_common(3)]
        return "\n\n".join([*parts, "\n".join(notes)] if notes else parts)


class ModelFiles:
    """Model of the presets, located on first use, because locating the small model takes some seconds."""

    def __init__(self, source: str | None) -> None:
        self._source = source
        self._model: tuple[str, str] | None = None

    @property
    def folder(self) -> str:
        return self._find()[0]

    @property
    def gguf(self) -> str:
        """Path of the .gguf file; empty if the model has another form."""
        return self._find()[1]

    def _find(self) -> tuple[str, str]:
        """Return folder and .gguf file. Raise ValueError if the model is missing."""
        if self._model is None:
            from aiochatstream.engines.transformers.loading import folder, locate

            try:
                located = locate(self._source)
            except FileNotFoundError as error:
                raise ValueError(str(error)) from None
            self._model = folder(located), located if located.endswith(".gguf") else ""
        return self._model


def extra_body(text: str) -> tuple[str, dict[str, Any]]:
    """Parse the name of a server and a JSON object."""
    name, _, raw = text.partition("=")
    try:
        value = json.loads(raw)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be like NAME={{...}} with a JSON object, not {text!r}")
    return name, value


def read_options() -> argparse.Namespace:
    parser = new_parser("Compare several servers with the same requests, in turn.", HELP)
    add = parser.add_argument
    add("servers", nargs="*", default=list(PRESETS), metavar="SERVER", help="two or more; see below (all presets)")
    add("--baseline", metavar="NAME", help="denominator of the ratios (default: the first measured server)")
    add(
        "--concurrency",
        type=integers(1, 4096),
        default=[1, 4, 8, 16],
        metavar="1,4,..",
        help="concurrent users (1,4,8,16)",
    )
    add(
        "--requests-per-client",
        type=integer(1, 10_000),
        default=2,
        metavar="N",
        help="average requests of a user per round (2)",
    )
    add("--max-tokens", type=integer(1, 100_000), default=64, metavar="N", help="tokens of an answer (64)")
    add(
        "--rounds",
        type=integer(1, 1000),
        default=3,
        metavar="N",
        help="rounds of each server at each concurrency (3)",
    )
    add(
        "--round-seconds",
        type=number(0.1, 86_400),
        default=300.0,
        metavar="S",
        help="maximum duration of a round (300)",
    )
    add(
        "--start-seconds",
        type=number(0.1, 86_400),
        default=600.0,
        metavar="S",
        help="maximum seconds until a server is ready (600)",
    )
    add("--prompts", default="mixed", metavar="KIND|FILE", help="as in `aiochatstream bench` (mixed)")
    add("--seed", type=integer(0, 2**31), default=0, metavar="N", help="seed of the prompts (0)")
    add("--model", metavar="MODEL", help="model of the presets: a folder or .gguf file (default: the small model)")
    add("--peers", type=Path, default=PEERS, metavar="DIR", help="folder of the environments of peers.py")
    add(
        "--extra-body",
        type=extra_body,
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="additional fields of requests to a server, for example 'mine={\"ignore_eos\": true}'; reported by --json",
    )
    options = parser.parse_args()
    try:
        options.specs = server_specs(options)
        Prompts(options.prompts, options.seed)
    except ValueError as error:
        parser.error(str(error))
    return options


def server_specs(options: argparse.Namespace) -> list[ServerSpec]:
    """Return the servers of the command line. Raise ValueError with a sentence."""
    specs = [parse_spec(text, options.peers) for text in options.servers]
    names = [spec.name for spec in specs]
    if len(names) < 2:
        raise ValueError("a comparison requires two servers or more")
    if len(unique(names)) < len(names):
        raise ValueError(f"two servers have the name {max(names, key=names.count)}: rename one with NAME=...")
    references = [("baseline", options.baseline or names[0]), *(("extra-body", name) for name, _ in options.extra_body)]
    for option, name in references:
        if name not in names:
            raise ValueError(f"--{option} must name one of the servers ({', '.join(names)}), not {name!r}")
    bodies = dict(options.extra_body)
    return [replace(spec, extra_body={**spec.extra_body, **bodies.get(spec.name, {})}) for spec in specs]


def main() -> int:
    options = read_options()
    comparison = Comparison(options)
    code = OK
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(comparison.run())
    except KeyboardInterrupt:
        print("Interrupted: results so far.")
        code = INTERRUPTED
    except (ValueError, MissingExtra) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return WRONG_USE
    print(comparison.render())
    results = comparison.to_json()
    options.servers = [spec.name for spec in options.specs]
    options.model, options.baseline = comparison.model_name, comparison.baseline
    hidden = ("specs", "peers")  # the results contain the specs; the other is a folder of this machine
    write_json(options, "compare", results, interrupted=code == INTERRUPTED, hidden=hidden)
    return code or (OK if len({round_.server for round_ in comparison.rounds}) > 1 else FAILED)


if __name__ == "__main__":
    run_script(main)
