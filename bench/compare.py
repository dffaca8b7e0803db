"""``python bench/compare.py SERVER...``: the same work for several servers in turn, and what one is to the other."""

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
from common import FAILED, INTERRUPTED, OK, WRONG_USE, number, parser, progress, run_script, whole, wholes, write_json
from peers import PEERS, PRESETS
from ratios import Round, ratios, remarks, render, unique
from server_process import Program, listening, program
from server_specs import Contestant, read
from servers import new_event_loop

from aiochatstream.bench import tokens
from aiochatstream.bench.command import KEEPALIVE_SECONDS, NotReady, probe
from aiochatstream.bench.load import Load
from aiochatstream.bench.metrics import summarize
from aiochatstream.bench.plan import Plan
from aiochatstream.bench.prompts import Prompts
from aiochatstream.bench.protocols import PROTOCOLS, Target
from aiochatstream.bench.request import Clock

WARM_UP = 2
"""Requests at once, unmeasured, after a server has started and answered its first."""
POLL_SECONDS = 0.2

HELP = f"""\
Each SERVER is one of
  NAME of a preset             {", ".join(PRESETS)}
  NAME[:PROTOCOL]=URL          one that runs
  NAME[:PROTOCOL]=COMMAND      one that is started, with {{port}} where the port belongs that it shall listen on
PROTOCOL is sse (default), text, openai or chatstream, as in `aiochatstream bench --help`, which defines the metrics.

A server that is started gets a port of its own and is ready when it has answered one request; then {WARM_UP} more warm
it up. While others have their turn it is paused (SIGSTOP), so that it takes no processor time, but all stay in memory;
in the end it is stopped with all that it started. A server at a URL is never paused: it should be idle by itself.

At each concurrency, --rounds times, each server in turn (A B C A B C ...) is asked the same prompts by so many users,
each of whom asks again as soon as its answer has ended: greedily, --max-tokens tokens an answer, past the model's end
token where the server can be told so. The prompts of a round are in no other, so that no cache knows them (unless
--prompts FILE has too few lines, and is begun anew). A round that is cut (--round-seconds) is in no ratio. The tables
show medians of the rounds (times in milliseconds) and, for each server, its figure over the baseline's in the same
round: the median of these ratios, with the least and the most in parentheses. Tokens are as the server counts them,
else as the model's tokenizer does (with a preset or --model), else a token for each piece of text.

Presets run in environments of their own, made by `python bench/peers.py install NAME` (`python bench/peers.py lines`
prints what that runs). One that is not installed, or does not start, is not measured, and the others go on.

exit codes: 0 two servers or more were measured; 1 fewer; 2 wrong use, or a URL or a COMMAND that cannot be asked;
130 Ctrl-C (prints what was measured so far)
"""


@dataclass
class Side:
    """A contestant and what is known of it. ``reason``: why it is not measured, or not any more."""

    contestant: Contestant
    target: Target | None = None
    program: Program | None = None
    reason: str = ""
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return self.contestant.name

    def starts_late(self) -> tuple[bool, bool]:
        """An order: what is quick, and what may be wrong use, comes first."""
        return not self.contestant.own, self.contestant.command != ""


class Comparison:
    """All servers, and the rounds that were measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.sides = [Side(contestant, reason=contestant.missing) for contestant in options.contestants]
        self.rounds: list[Round] = []
        self._clock = Clock()
        self._prompts = Prompts(options.prompts, options.seed)
        self._model = Model(options.model)
        self._count_tokens: tokens.CountTokens | None = None

    async def run(self) -> None:
        """Start, measure, stop. Raises ValueError where a server that the user named cannot be asked."""
        if self.options.model or any(side.contestant.needs and not side.reason for side in self.sides):
            self._count_tokens = tokens.load_tokenizer(self._model.folder)
        with ExitStack() as programs:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
            try:
                async with connector:
                    for side in sorted(self.sides, key=Side.starts_late):
                        if not side.reason:
                            await self._prepare(side, connector, programs)
                    await self._take_turns()
            finally:
                for side in self.sides:
                    if side.program is not None and not side.program.ended:
                        progress(f"stopping {side.name}")
                        side.program.ask_to_end()

    async def _prepare(self, side: Side, connector: aiohttp.TCPConnector, programs: ExitStack) -> None:
        try:
            if side.contestant.command:
                self._start(side, programs)
            side.target = self._target(side, connector)
            async with asyncio.timeout(self.options.start_seconds):
                await self._ready(side, side.target)
                await self._load(side.target, WARM_UP, WARM_UP, first=1).run()
            if side.program is not None:
                side.program.pause()
        except (OSError, RuntimeError, ValueError) as error:  # TimeoutError is an OSError
            side.reason = str(error) or f"it was not ready within {self.options.start_seconds:g} s"
        if side.reason and side.contestant.own:
            raise ValueError(f"{side.name}: {side.reason}")
        if side.reason:
            progress(f"{side.name} is not measured: {side.reason}")
            if side.program is not None:
                side.program.end()

    def _start(self, side: Side, programs: ExitStack) -> None:
        contestant, options = side.contestant, self.options
        progress(f"starting {side.name}")
        fill = {**contestant.fill, "clients": str(max(options.concurrency)), "max_tokens": str(options.max_tokens)}
        if contestant.needs:
            fill |= {"model": self._model.folder, "gguf": self._model.gguf}
        if contestant.needs == "{gguf}" and not self._model.gguf:
            raise RuntimeError("it takes a .gguf file only")
        side.program = programs.enter_context(program(contestant.command, fill, contestant.env))

    def _target(self, side: Side, connector: aiohttp.TCPConnector) -> Target:
        contestant, options = side.contestant, self.options
        told = contestant.protocol != "chatstream"  # whose own settings hold
        plan = Plan(
            url=side.program.url if side.program else contestant.url,
            protocol=contestant.protocol,
            model=self._model.folder if contestant.names_model else None,
            max_tokens=options.max_tokens if told else None,
            temperature=0.0 if told else None,
            ignore_eos=contestant.ignore_eos,
            timeout=2 * max(options.round_seconds, options.start_seconds),  # those limits are kept here
            tokenizer=self._model.folder if self._count_tokens else None,
            extra_body=dict(contestant.extra_body),
        )
        return Target(plan, PROTOCOLS[plan.protocol], connector, plan.model)

    async def _ready(self, side: Side, target: Target) -> None:
        """Wait until it answers. Raises RuntimeError where it ends first."""
        started = side.program
        while started is not None and not listening(started.port):
            if started.ended:
                raise RuntimeError(started.ended)
            await asyncio.sleep(POLL_SECONDS)
        while True:
            try:
                await probe(target, self._prompts, self._clock)
                return
            except ValueError as error:
                if started is None:
                    raise
                if started.ended:
                    raise RuntimeError(started.ended) from None
                if not isinstance(error, NotReady):
                    raise
            await asyncio.sleep(POLL_SECONDS)

    async def _take_turns(self) -> None:
        first = 1 + WARM_UP
        for level in self.options.concurrency:
            requests = level * self.options.requests_per_client
            for turn in range(1, self.options.rounds + 1):
                for side in self.sides:
                    if not side.reason and side.target is not None:
                        progress(f"concurrency {level}, round {turn} of {self.options.rounds}: {side.name}")
                        await self._take_turn(side, self._load(side.target, level, requests, first), turn)
                first += requests

    def _load(self, target: Target, level: int, requests: int, first: int) -> Load:
        return Load(target, self._prompts, self._clock, level, requests, first_index=first)

    async def _take_turn(self, side: Side, load: Load, turn: int) -> None:
        if side.program is not None:
            side.program.go_on()
        cut = False
        try:
            async with asyncio.timeout(self.options.round_seconds):
                await load.run()
        except TimeoutError:
            cut = True
        tokens.count(load.records, self._count_tokens)
        summary = summarize(load)
        if side.program is not None:
            if summary.failed or cut:
                await side.program.settle()
            side.reason = side.program.ended
            side.program.pause()
        side.faults.update(summary.reasons)
        self.rounds.append(Round.of(side.name, summary.concurrency or 0, turn, summary, cut=cut))

    @property
    def model_name(self) -> str | None:
        """None: nothing had to know it."""
        return Path(self._model.folder).name if self._count_tokens else None

    def as_json(self) -> dict[str, Any]:
        measured = {one.server for one in self.rounds}
        return {
            "servers": [
                {
                    "name": side.name,
                    "title": side.contestant.title,
                    "protocol": side.contestant.protocol,
                    "versions": side.contestant.versions,
                    "command": side.contestant.shown,
                    "note": side.contestant.note,
                    "measured": side.name in measured,
                    "reason": side.reason or None,
                    "faults": side.faults,
                }
                for side in self.sides
            ],
            "rounds": [asdict(one) for one in self.rounds],
            "ratios": ratios(self.rounds, self.baseline),
            "remarks": self._remarks(),
        }

    @property
    def baseline(self) -> str:
        """The one that was named, else the first that was measured."""
        measured = unique(one.server for one in self.rounds)
        return self.options.baseline or (measured[0] if measured else "")

    def _remarks(self) -> list[str]:
        lines = remarks(self.rounds, self.options.max_tokens)
        measured = {one.server for one in self.rounds}
        if measured and self.baseline not in measured:
            lines.append(f"{self.baseline}, the baseline, was not measured: there are no ratios")
        elif measured and not self.options.baseline and self.baseline != self.sides[0].name:
            lines.append(f"{self.sides[0].name} was not measured: the baseline is {self.baseline}")
        return lines

    def render(self) -> str:
        parts = [render(self.rounds, self.baseline) or "Nothing was measured."]
        notes = [
            f"{side.name}: {side.contestant.note}" for side in self.sides if side.contestant.note and not side.reason
        ]
        notes += self._remarks()
        for side in self.sides:
            measured = any(one.server == side.name for one in self.rounds)
            if side.reason:
                notes.append(f"{side.name}: {'not measured further' if measured else 'not measured'}: {side.reason}")
            notes += [f"{side.name}: {count} x {reason}" for reason, count in side.faults.most_common(3)]
        return "\n\n".join([*parts, "\n".join(notes)] if notes else parts)


class Model:
    """What the presets serve, looked for when it is needed: finding the small one takes some seconds."""

    def __init__(self, source: str | None) -> None:
        self._source = source
        self._found: tuple[str, str] | None = None

    @property
    def folder(self) -> str:
        return self._find()[0]

    @property
    def gguf(self) -> str:
        """Empty where it is no .gguf file."""
        return self._find()[1]

    def _find(self) -> tuple[str, str]:
        """Raises ValueError where there is none."""
        if self._found is None:
            from aiochatstream.engines.transformers.loading import folder, locate

            try:
                located = locate(self._source)
            except FileNotFoundError as error:
                raise ValueError(str(error)) from None
            self._found = folder(located), located if located.endswith(".gguf") else ""
        return self._found


def extra_body(text: str) -> tuple[str, dict[str, Any]]:
    """An option's type: a server's name and a JSON object."""
    name, _, raw = text.partition("=")
    try:
        value = json.loads(raw)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be like NAME={{...}} with a JSON object, not {text!r}")
    return name, value


def read_options() -> argparse.Namespace:
    made = parser("The same work for several servers in turn, and what one is to the other.", HELP)
    add = made.add_argument
    add("servers", nargs="*", default=list(PRESETS), metavar="SERVER", help="two or more; see below (all presets)")
    add("--baseline", metavar="NAME", help="what the others are divided by (default: the first measured)")
    add("--concurrency", type=wholes(1, 4096), default=[1, 4, 8, 16], metavar="1,4,..", help="users (1,4,8,16)")
    add("--requests-per-client", type=whole(1, 10_000), default=2, metavar="N", help="of a round, on average (2)")
    add("--max-tokens", type=whole(1, 100_000), default=64, metavar="N", help="of an answer (64)")
    add("--rounds", type=whole(1, 1000), default=3, metavar="N", help="of each server at each concurrency (3)")
    add("--round-seconds", type=number(0.1, 86_400), default=300.0, metavar="S", help="then a round is cut (300)")
    add(
        "--start-seconds", type=number(0.1, 86_400), default=600.0, metavar="S", help="until it is ready, at most (600)"
    )
    add("--prompts", default="mixed", metavar="KIND|FILE", help="as in `aiochatstream bench` (mixed)")
    add("--seed", type=whole(0, 2**31), default=0, metavar="N", help="of the prompts (0)")
    add("--model", metavar="MODEL", help="of the presets: a folder or a .gguf file (default: the small one)")
    add("--peers", type=Path, default=PEERS, metavar="DIR", help="where peers.py made environments")
    add(
        "--extra-body",
        type=extra_body,
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="fields for each request to that server, such as 'mine={\"ignore_eos\": true}'; --json tells them",
    )
    options = made.parse_args()
    try:
        options.contestants = contestants(options)
        Prompts(options.prompts, options.seed)
    except ValueError as error:
        made.error(str(error))
    return options


def contestants(options: argparse.Namespace) -> list[Contestant]:
    """The servers that were named. Raises ValueError with one sentence."""
    read_ones = [read(text, options.peers) for text in options.servers]
    names = [one.name for one in read_ones]
    if len(names) < 2:
        raise ValueError("a comparison needs two servers or more")
    if len(unique(names)) < len(names):
        raise ValueError(f"two servers have one name ({max(names, key=names.count)}): name one of them NAME=...")
    named = [("baseline", options.baseline or names[0]), *(("extra-body", name) for name, _ in options.extra_body)]
    for option, name in named:
        if name not in names:
            raise ValueError(f"--{option} names {name!r}, which is none of the servers ({', '.join(names)})")
    bodies = dict(options.extra_body)
    return [replace(one, extra_body={**one.extra_body, **bodies.get(one.name, {})}) for one in read_ones]


def main() -> int:
    options = read_options()
    comparison = Comparison(options)
    code = OK
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(comparison.run())
    except KeyboardInterrupt:
        print("Interrupted: this is what was measured so far.")
        code = INTERRUPTED
    except ValueError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return WRONG_USE
    print(comparison.render())
    results = comparison.as_json()
    options.servers = [one.name for one in options.contestants]
    options.model, options.baseline = comparison.model_name, comparison.baseline
    hidden = ("contestants", "peers")  # told of each server, and a folder of this machine
    write_json(options, "compare", results, interrupted=code == INTERRUPTED, hidden=hidden)
    return code or (OK if len({one.server for one in comparison.rounds}) > 1 else FAILED)


if __name__ == "__main__":
    run_script(main)
