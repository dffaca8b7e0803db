"""``python bench/engine.py``: the engine without HTTP, beside plain ``model.generate`` and the memory's own speed."""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
import transformers
from common import (
    FAILED,
    INTERRUPTED,
    OK,
    WRONG_USE,
    Spread,
    parser,
    progress,
    run_script,
    table,
    whole,
    wholes,
    write_json,
)
from runners import Side, engine_side, plain_side, stall, stamped, step_s, ttft
from step_profile import Steps
from transformers import AutoModelForCausalLM, AutoTokenizer

from aiochatstream.engines.transformers.cpu.openmp import release_idle_threads
from aiochatstream.engines.transformers.engine import TransformersEngine
from aiochatstream.engines.transformers.loading import choose_device, choose_dtype, folder, locate
from aiochatstream.engines.transformers.packed_forward import PackedForward

CONTEXT = 2048
"""Tokens of a row."""
PARTS = ("prefill", "decode", "batch", "turns", "users", "stall", "profile")
TURN_TOKENS = 32
"""The next turn's message."""
FIRST_ANSWER = 4

HELP = """\
The engine (the one that ChatStream has behind it) and plain model.generate, which has a model of its own, read random
tokens and write greedily, never ending early, in turn (A B A B), --rounds times. No tokens are ever used twice, so that
nothing is known from a round before. Shown is the median, with the least and the most in parentheses, and the ratio
engine over plain, pair by pair.
  prefill    prompt tokens per second until the first token is there, by the prompt's length
  decode     milliseconds per step (the median gap between tokens), and tokens per second, by the tokens before them
  batch      the same for so many answers at once: requests to the engine, one batch of model.generate
  turns      TTFT: milliseconds to the first token of a second turn (a message of 32 tokens), by the history's length
  users      TTFT of a prompt whose first half is the server's own (the engine alone): unknown to the engine; where
             another user has asked the same, of which only the server's half is shared (the default); and where the
             same user has, which with share_prefixes=True is as quick for another user. The last two differ by the
             price of keeping users apart
  stall      what answers under way suffer from a prompt that arrives (the engine alone): the 99th percentile of the
             gaps between their tokens while it is read, and the median gap before. One round goes ahead, unmeasured:
             oneDNN makes code for sizes that it has not met, so a server's first long prompt disturbs more
  profile    where the milliseconds of a decode step go, by rows: in the linear layers, in attention with its keys and
             values, in the rest of the model, in choosing the tokens, in preparing the step; and what all linear layers
             take one after another, with nothing between them. With --compile, shares are those of a step that is not
             compiled, whose parts cannot be told; how long a compiled one takes stands beside them
  floor      milliseconds that reading all weights once takes: their bytes over the memory bandwidth, which is measured
             in this run as the best of --rounds reads of --read-mib MiB. No step at batch 1 can be quicker

exit codes: 0 measured; 1 nothing was, or the model failed; 2 wrong use, or there is no such model; 130 Ctrl-C (prints
what was measured so far)
"""


@dataclass(frozen=True)
class Row:
    """One figure of both sides, round by round."""

    part: str
    at: str
    unit: str
    engine: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> Spread:
        return Spread.of([ours / theirs for ours, theirs in zip(self.engine, self.plain, strict=False)])


@dataclass
class Results:
    """What is known so far."""

    weight_bytes: int = 0
    bandwidth: float = 0.0
    rows: list[Row] = field(default_factory=list)
    users: list[dict[str, float]] = field(default_factory=list)
    stalls: list[dict[str, float]] = field(default_factory=list)
    profiles: list[dict[str, float]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def floor_ms(self) -> float:
        return self.weight_bytes / self.bandwidth * 1000 if self.bandwidth else 0.0

    def row(self, part: str, at: str, unit: str) -> Row:
        self.rows.append(Row(part, at, unit))
        return self.rows[-1]

    def render(self) -> str:
        rows = [row for row in self.rows if row.plain]
        left_out = "".join(f"\n{sentence}" for sentence in self.left_out)
        profiles = "".join(figures(of) for of in (self.users, self.stalls, self.profiles) if of)
        if not rows:
            return profiles + left_out if profiles else f"Nothing was measured.{left_out}"
        head = ("", "", "", "engine", "model.generate", "engine/plain", "floor", "engine/floor")
        cells = []
        for row in rows:
            step = row.unit == "ms/step" and row.part == "decode"
            times = Spread.of(row.engine).median / self.floor_ms if step else 0.0
            floor = (f"{self.floor_ms:.1f}", f"{times:.1f}x") if step else ("", "")
            sides = (Spread.of(row.engine).show(), Spread.of(row.plain).show(), row.ratio.show(2))
            cells.append((row.part, row.at, row.unit, *sides, *floor))
        return (
            f"{table(head, cells)}\n\nweights {self.weight_bytes / 2**20:.0f} MiB over {self.bandwidth / 1e9:.1f} GB/s "
            f"measured = {self.floor_ms:.1f} ms: the floor of a step{profiles}{left_out}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "weight_bytes": self.weight_bytes,
            "bandwidth_bytes_per_s": self.bandwidth,
            "floor_ms": self.floor_ms,
            "users": self.users,
            "stalls": self.stalls,
            "profiles": self.profiles,
            "left_out": self.left_out,
            "rows": [
                {
                    **asdict(row),
                    "engine_spread": asdict(Spread.of(row.engine)),
                    "plain_spread": asdict(Spread.of(row.plain)),
                    "ratio": asdict(row.ratio),
                }
                for row in self.rows
                if row.plain
            ],
        }


class Bench:
    """Both sides over the same model."""

    def __init__(self, options: argparse.Namespace, results: Results) -> None:
        self.options, self.results = options, results
        self._random = random.Random(options.seed)  # noqa: S311 - nothing here is secret

    def load(self) -> None:
        device = choose_device()
        source = folder(self.options.located)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=choose_dtype(device)).to(device)
        weights = {weight.data_ptr(): weight.numel() * weight.element_size() for weight in model.parameters()}
        plain = copy.deepcopy(model)  # the engine changes its own
        engine = TransformersEngine(model, AutoTokenizer.from_pretrained(source), compile=self.options.compile)
        engine.load(max(*self.options.batches, *self.options.stall_answers) + 1, CONTEXT)
        self.limit = engine.max_context_len or sys.maxsize
        self._engine, self._model, self._vocabulary = (
            engine,
            model,
            int(model.config.get_text_config(decoder=True).vocab_size),
        )
        self.sides = {"engine": engine_side(engine), "plain": plain_side(plain)}
        for side in self.sides.values():
            side([self._ids(8)], 4)  # the first pass is slow
        self.results.weight_bytes = sum(weights.values())
        self.results.bandwidth = bandwidth(device, self.options.read_mib, self.options.rounds)
        release_idle_threads()  # of this thread: they slow the engine's down

    def run(self) -> None:
        for part in self.options.parts:
            getattr(self, f"_{part}")()

    def _prefill(self) -> None:
        for length in self._fitting("prefill", self.options.prompts, 1):
            row = self.results.row("prefill", f"{length} tokens", "tokens/s")
            self._rounds(row, lambda side, length=length: [length / ttft(side([self._ids(length)], 1))])

    def _decode(self) -> None:
        for length in self._fitting("decode", self.options.contexts, self.options.steps + 1):
            self._steps("decode", f"after {length} tokens", 1, length)

    def _batch(self) -> None:
        for rows in self.options.batches:
            self._steps("batch", f"{rows} at once", rows, 8)

    def _steps(self, part: str, at: str, rows: int, length: int) -> None:
        milliseconds = self.results.row(part, at, "ms/step")
        rate = self.results.row(part, at, "tokens/s")

        def measure(side: Side) -> list[float]:
            took = step_s(side([self._ids(length) for _ in range(rows)], self.options.steps + 1))
            return [took * 1000, rows / took]

        self._rounds(milliseconds, measure, rate)

    def _turns(self) -> None:
        for length in self._fitting("turns", self.options.histories, TURN_TOKENS + FIRST_ANSWER + 1):
            row = self.results.row("turns", f"{length} tokens before", "ms to first token")

            def measure(side: Side, length: int = length) -> list[float]:
                history = self._ids(length)
                side([history], FIRST_ANSWER)
                return [ttft(side([history + self._ids(TURN_TOKENS)], 1)) * 1000]

            self._rounds(row, measure)

    def _users(self) -> None:
        for length in self._fitting("users", self.options.histories, 1):
            took: dict[str, list[float]] = {"unknown, ms": [], "another user's, ms": [], "one's own, ms": []}
            head = self._ids(length // 2)
            self._engine.share(head)
            for turn in range(self.options.rounds):
                progress(f"users, {length} tokens, round {turn + 1} of {self.options.rounds}")
                prompt = head + self._ids(length - len(head))
                for (name, times), ids, owner in zip(
                    took.items(), (self._ids(length), prompt, prompt), ("stranger", "one", "one"), strict=True
                ):
                    if name.startswith("another"):
                        for _ in stamped(self._engine, prompt, 1, "other", len(head)):
                            pass
                    began, first = stamped(self._engine, ids, 1, owner, len(head))
                    times.append((first - began) * 1000)
            self.results.users.append({"tokens": length} | {name: median(times) for name, times in took.items()})

    def _stall(self) -> None:
        (length,) = self._fitting("stall", [self.options.stall_prompt], 1) or (0,)
        for answers in self.options.stall_answers if length else []:
            before: list[float] = []
            meanwhile: list[float] = []
            for turn in range(self.options.rounds + 1):
                progress(f"stall, {answers} answers, round {turn} of {self.options.rounds}")
                gaps = stall(self._engine, [self._ids(8) for _ in range(answers)], self._ids(length))
                if turn:  # sizes that oneDNN meets for the first time are slow
                    before += gaps.before
                    meanwhile += gaps.meanwhile
            calm_ms, p99_ms = median(before) * 1000, quantiles(meanwhile, n=100, method="inclusive")[98] * 1000
            self.results.stalls.append(
                {"answers": answers, "prompt": length, "p50 before, ms": calm_ms, "p99 meanwhile, ms": p99_ms}
                | {"ratio": p99_ms / calm_ms}
            )

    def _profile(self) -> None:
        compiled = PackedForward(self._model, compiled=True) if self.options.compile else None
        for rows in self.options.batches:
            progress(f"profile, {rows} rows")
            steps = Steps(self._model, rows, self.options.profile_context, compiled)
            self.results.profiles.append(steps.measure(self.options.steps))

    def _rounds(self, row: Row, measure: Callable[[Side], list[float]], second: Row | None = None) -> None:
        for turn in range(self.options.rounds):
            progress(f"{row.part}, {row.at}, round {turn + 1} of {self.options.rounds}")
            for name, side in self.sides.items():
                values = measure(side)
                for into, value in zip((row, second), values, strict=False):
                    if into is not None:
                        getattr(into, name).append(value)

    def _ids(self, length: int) -> list[int]:
        return [self._random.randrange(self._vocabulary) for _ in range(length)]

    def _fitting(self, part: str, lengths: list[int], more: int) -> list[int]:
        """Those that the model has room for."""
        self.results.left_out += [
            f"{part} of {length} tokens is left out: the model has room for {self.limit}, and {more} more are needed"
            for length in lengths
            if length + more > self.limit
        ]
        return [length for length in lengths if length + more <= self.limit]


def figures(rows: list[dict[str, float]]) -> str:
    """A table of its own, below the others."""
    cells = [tuple(f"{one[name]:.2f}".removesuffix(".00") for name in one) for one in rows]
    return "\n\n" + table(tuple(rows[0]), cells)


def bandwidth(device: torch.device, mebibytes: int, rounds: int) -> float:
    """Bytes per second that can be read: the best of some sums over a large tensor."""
    large = torch.ones(mebibytes * 2**18, dtype=torch.float32, device=device)
    best = float("inf")
    for _ in range(rounds + 2):
        start = time.perf_counter()
        large.sum().item()
        best = min(best, time.perf_counter() - start)
    return large.numel() * large.element_size() / best


def read_options() -> argparse.Namespace:
    made = parser("The engine without HTTP, beside plain model.generate and the memory's own speed.", HELP)
    lengths = wholes(1, 1_000_000)
    made.add_argument("--model", metavar="M", help="HuggingFace id, folder or .gguf file (default: the small model)")
    made.add_argument("--compile", action="store_true", help="the engine's model is compiled (compile=True)")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    made.add_argument(
        "--prompts", type=lengths, default=[64, 256, 1024], metavar="N,N", help="for prefill (64,256,1024)"
    )
    made.add_argument(
        "--contexts", type=lengths, default=[32, 512, 1024], metavar="N,N", help="for decode (32,512,1024)"
    )
    made.add_argument(
        "--batches", type=wholes(1, 256), default=[1, 2, 4, 8, 16, 32], metavar="N,N", help="at once (1,2,4,8,16,32)"
    )
    made.add_argument(
        "--stall-prompt", type=whole(2, 1_000_000), default=2000, metavar="N", help="its tokens, for stall (2000)"
    )
    made.add_argument(
        "--stall-answers", type=wholes(1, 256), default=[1, 4, 16], metavar="N,N", help="under way, for stall (1,4,16)"
    )
    made.add_argument(
        "--profile-context", type=whole(1, 1_000_000), default=256, metavar="N", help="tokens before, for profile (256)"
    )
    made.add_argument(
        "--histories", type=lengths, default=[200, 800, 1600], metavar="N,N", help="for turns (200,800,1600)"
    )
    made.add_argument("--steps", type=whole(1, 100_000), default=16, metavar="N", help="of an answer (16)")
    made.add_argument("--rounds", type=whole(1, 1000), default=3, metavar="N", help="of each side (3)")
    made.add_argument("--read-mib", type=whole(1, 65_536), default=512, metavar="N", help="to read for the floor (512)")
    made.add_argument("--torch-threads", type=whole(1, 1024), metavar="N", help="of torch (default: its own choice)")
    made.add_argument("--seed", type=whole(0, 2**31), default=0, metavar="N", help="of the tokens (0)")
    options = made.parse_args()
    try:
        options.located = locate(options.model)
    except FileNotFoundError as error:
        made.error(str(error))
    return options


def main() -> int:
    options = read_options()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if options.torch_threads:
        torch.set_num_threads(options.torch_threads)
    results = Results()
    bench = Bench(options, results)
    code = OK
    try:
        try:
            bench.load()
        except (OSError, ValueError) as error:  # there is no such model
            print(f"engine.py: {sentence(error)}", file=sys.stderr)
            return WRONG_USE
        bench.run()
    except KeyboardInterrupt:
        print("Interrupted: this is what was measured so far.")
        code = INTERRUPTED
    except (RuntimeError, OSError, ValueError) as error:
        print(f"engine.py: {sentence(error)}", file=sys.stderr)
        code = FAILED
    print(results.render())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions["torch_threads"] = str(torch.get_num_threads())
    hidden = ("located",)
    write_json(options, "engine", results.as_json(), interrupted=code == INTERRUPTED, hidden=hidden, **versions)
    return code or (OK if any(row.plain for row in results.rows) else FAILED)


def sentence(error: Exception) -> str:
    """The first line of what it says."""
    return (str(error) or repr(error)).splitlines()[0]


if __name__ == "__main__":
    run_script(main)
