"""``python bench/engine.py``: measure the engine without HTTP, compared with plain ``model.generate``."""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
import transformers
from cache_memory import measure_chats, measure_lookups
from common import (
    FAILED,
    INTERRUPTED,
    OK,
    WRONG_USE,
    Spread,
    integer,
    integers,
    new_parser,
    progress,
    run_script,
    show_figure,
    table,
    write_json,
)
from random_models import HYBRIDS, hybrid_model
from runners import Runner, engine_runner, measure_beside, measure_stall, plain_runner, step_s, token_times, ttft
from step_profile import StepProfiler
from transformers import AutoModelForCausalLM, AutoTokenizer

from aiochatstream.engines.load_options import QUANTIZE_NAMES
from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.engines.transformers.cpu.openmp import release_idle_threads
from aiochatstream.engines.transformers.engine import TransformersEngine
from aiochatstream.engines.transformers.loading import choose_device, choose_dtype, folder, locate
from aiochatstream.engines.transformers.packed_forward import PackedForward

CONTEXT = 2048
"""Maximum tokens of a row, unless the document of ``beside`` is longer."""
PARTS = ("prefill", "decode", "batch", "turns", "users", "stall", "beside", "profile", "hybrid", "lookup", "memory")
TURN_TOKENS = 32
"""Tokens of the second turn's message."""
FIRST_ANSWER_TOKENS = 4
QUESTION_TOKENS, QUESTIONS = 30, 5
"""Tokens of a question, and number of questions while a document is read."""

HELP = """\
ChatStream's engine and plain model.generate, with its own copy of the model, take turns (A B A B), --rounds times. They
read random tokens and generate greedily, ignoring the end token. All tokens are new in each round, so that nothing is
cached. The figures are medians, with minimum and maximum in parentheses, and ratios of engine to plain, pair by pair.
  prefill    prompt tokens per second until the first token, by length of the prompt
  decode     milliseconds per step (median gap between tokens) and tokens per second, by length of the context
  batch      the same by the number of concurrent answers: requests to the engine, a batch of model.generate
  turns      TTFT of a second turn (a message of 32 tokens) in milliseconds, by length of the history
  users      TTFT of a prompt whose first half is a prefix shared by all users (engine only): for a new prompt; after
             another user has sent the same prompt, of which only the shared half is cached (the default); and after the
             same user has sent it, which is as fast for other users with share_prefixes=True. The difference between
             the last two is the cost of isolating users
  stall      effect of a new prompt on running answers (engine only): the 99th percentile of the gaps between their
             tokens during its prefill, and the median gap before. One round is not measured: oneDNN generates code for
             new sizes, so that the first long prompt of a server causes longer gaps
  beside     TTFT of questions of 30 tokens and of a document (engine only), alone and beside each other: 5 questions
             arrive one after another, at random moments while the document is read. A round has the median of its
             questions, and the ratios are those of the same round
  profile    milliseconds of the parts of a decoding step, by rows: linear layers, attention with keys and values, rest
             of the model, sampling, preparation; and the time of all linear layers in a row without the parts between
             them. With --compile, the parts are those of an uncompiled step, because a compiled step cannot be divided;
             its total is reported as well
  hybrid     milliseconds per step of random hybrid models of some 100 million parameters (engine only), by rows, and
             the growth over the first number of rows, which has its turn in the same round
  lookup     microseconds of a lookup in the prefix cache alone, by the number of cached sequences: 64 tokens of one
             owner, of which the first 24 are equal; for prompts that continue one of them, and for others. The ratios
             are those to the first number, in the same round
  memory     tokens of memory that 16 short chats (30 tokens and an answer of 32) take while they run together (engine
             only), with kv_cache_bytes for 4 whole contexts
  floor      milliseconds to read all weights once, a lower bound of a step at batch size 1: their bytes divided by the
             memory bandwidth, which is the best of --rounds reads of --read-mib MiB in this run

exit codes: 0 measured; 1 no results, or the model failed; 2 wrong use, or the model is missing; 130 Ctrl-C (prints the
results so far)
"""


@dataclass(frozen=True)
class Row:
    """One metric of both runners, round by round."""

    part: str
    at: str
    unit: str
    engine: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> Spread:
        return Spread.of([engine / plain for engine, plain in zip(self.engine, self.plain, strict=False)])


@dataclass
class Results:
    """Results so far."""

    weight_bytes: int = 0
    bandwidth: float = 0.0
    rows: list[Row] = field(default_factory=list)
    users: list[dict[str, float]] = field(default_factory=list)
    stalls: list[dict[str, float]] = field(default_factory=list)
    besides: list[dict[str, float]] = field(default_factory=list)
    profiles: list[dict[str, float]] = field(default_factory=list)
    hybrids: list[dict[str, float | str]] = field(default_factory=list)
    lookups: list[dict[str, float]] = field(default_factory=list)
    chats: list[dict[str, float]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def floor_ms(self) -> float:
        return self.weight_bytes / self.bandwidth * 1000 if self.bandwidth else 0.0

    @property
    def figures(self) -> dict[str, Sequence[Mapping[str, float | str]]]:
        """Tables of the parts without plain ``model.generate``."""
        return {
            "users": self.users,
            "stalls": self.stalls,
            "besides": self.besides,
            "profiles": self.profiles,
            "hybrids": self.hybrids,
            "lookups": self.lookups,
            "chats": self.chats,
        }

    @property
    def is_empty(self) -> bool:
        return not any(row.plain for row in self.rows) and not any(self.figures.values())

    def new_row(self, part: str, at: str, unit: str) -> Row:
        self.rows.append(Row(part, at, unit))
        return self.rows[-1]

    def render(self) -> str:
        rows = [row for row in self.rows if row.plain]
        left_out = "".join(f"\n{sentence}" for sentence in self.left_out)
        tables = "".join(figures_table(rows) for rows in self.figures.values() if rows)
        if not rows:
            return tables + left_out if tables else f"Nothing was measured.{left_out}"
        head = ("", "", "", "engine", "model.generate", "engine/plain", "floor", "engine/floor")
        cells = []
        for row in rows:
            is_step = row.unit == "ms/step" and row.part == "decode"
            factor = Spread.of(row.engine).median / self.floor_ms if is_step else 0.0
            floor = (f"{self.floor_ms:.1f}", f"{factor:.1f}x") if is_step else ("", "")
            spreads = (Spread.of(row.engine).show(), Spread.of(row.plain).show(), row.ratio.show(2))
            cells.append((row.part, row.at, row.unit, *spreads, *floor))
        return (
            f"{table(head, cells)}\n\nweights {self.weight_bytes / 2**20:.0f} MiB over {self.bandwidth / 1e9:.1f} GB/s "
            f"measured = {self.floor_ms:.1f} ms: the floor of a step{tables}{left_out}"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "weight_bytes": self.weight_bytes,
            "bandwidth_bytes_per_s": self.bandwidth,
            "floor_ms": self.floor_ms,
            **self.figures,
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


class EngineBench:
    """Measurements of both runners with the same model."""

    def __init__(self, options: argparse.Namespace, results: Results) -> None:
        self.options, self.results = options, results
        self._random = random.Random(options.seed)  # noqa: S311 - not security-relevant

    def load(self) -> None:
        device = choose_device()
        source = folder(self.options.located)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=choose_dtype(device)).to(device)
        weights = {weight.data_ptr(): weight.numel() * weight.element_size() for weight in model.parameters()}
        plain = copy.deepcopy(model)  # the engine modifies its model
        options = {"compile": self.options.compile, "quantize": self.options.quantize}
        engine = TransformersEngine(model, AutoTokenizer.from_pretrained(source), **options)
        context = max(CONTEXT, self.options.document + 1) if "beside" in self.options.parts else CONTEXT
        engine.load(max(*self.options.batches, *self.options.stall_answers) + 1, context)
        self.limit = engine.max_context_len or sys.maxsize
        self._source = source
        self._engine, self._model, self._vocabulary = (
            engine,
            model,
            int(model.config.get_text_config(decoder=True).vocab_size),
        )
        self.runners = {"engine": engine_runner(engine), "plain": plain_runner(plain)}
        for runner in self.runners.values():
            runner([self._ids(8)], 4)  # the first pass is slow
        self.results.weight_bytes = sum(weights.values())
        self.results.bandwidth = bandwidth(device, self.options.read_mib, self.options.rounds)
        release_idle_threads()  # those of this thread slow the engine down

    def run(self) -> None:
        for part in self.options.parts:
            getattr(self, f"_{part}")()

    def _prefill(self) -> None:
        for length in self._fitting("prefill", self.options.prompts, 1):
            row = self.results.new_row("prefill", f"{length} tokens", "tokens/s")

            def measure(runner: Runner, length: int = length) -> list[float]:
                return [length / ttft(runner([self._ids(length)], 1))]

            self._rounds(row, measure)

    def _decode(self) -> None:
        for length in self._fitting("decode", self.options.contexts, self.options.steps + 1):
            self._steps("decode", f"after {length} tokens", 1, length)

    def _batch(self) -> None:
        for rows in self.options.batches:
            self._steps("batch", f"{rows} at once", rows, 8)

    def _steps(self, part: str, at: str, rows: int, length: int) -> None:
        milliseconds = self.results.new_row(part, at, "ms/step")
        rate = self.results.new_row(part, at, "tokens/s")

        def measure(runner: Runner) -> list[float]:
            seconds = step_s(runner([self._ids(length) for _ in range(rows)], self.options.steps + 1))
            return [seconds * 1000, rows / seconds]

        self._rounds(milliseconds, measure, rate)

    def _turns(self) -> None:
        for length in self._fitting("turns", self.options.histories, TURN_TOKENS + FIRST_ANSWER_TOKENS + 1):
            row = self.results.new_row("turns", f"{length} tokens before", "ms to first token")

            def measure(runner: Runner, length: int = length) -> list[float]:
                history = self._ids(length)
                runner([history], FIRST_ANSWER_TOKENS)
                return [ttft(runner([history + self._ids(TURN_TOKENS)], 1)) * 1000]

            self._rounds(row, measure)

    def _users(self) -> None:
        for length in self._fitting("users", self.options.histories, 1):
            results: dict[str, list[float]] = {"new, ms": [], "another user's, ms": [], "same user's, ms": []}
            head = self._ids(length // 2)
            self._engine.share(head)
            for turn in range(self.options.rounds):
                progress(f"users, {length} tokens, round {turn + 1} of {self.options.rounds}")
                prompt = head + self._ids(length - len(head))
                for (name, times), ids, owner in zip(
                    results.items(), (self._ids(length), prompt, prompt), ("a", "b", "b"), strict=True
                ):
                    if name.startswith("another"):
                        for _ in token_times(self._engine, prompt, 1, "c", len(head)):
                            pass
                    start, first = token_times(self._engine, ids, 1, owner, len(head))
                    times.append((first - start) * 1000)
            self.results.users.append({"tokens": length} | {name: median(times) for name, times in results.items()})

    def _stall(self) -> None:
        (length,) = self._fitting("stall", [self.options.stall_prompt], 1) or (0,)
        for answers in self.options.stall_answers if length else []:
            before: list[float] = []
            during: list[float] = []
            for turn in range(self.options.rounds + 1):
                progress(f"stall, {answers} answers, round {turn} of {self.options.rounds}")
                gaps = measure_stall(self._engine, [self._ids(8) for _ in range(answers)], self._ids(length))
                if turn:  # oneDNN is slow with sizes that are new
                    before += gaps.before
                    during += gaps.during
            p50_ms, p99_ms = median(before) * 1000, quantiles(during, n=100, method="inclusive")[98] * 1000
            self.results.stalls.append(
                {"answers": answers, "prompt": length, "p50 before, ms": p50_ms, "p99 during, ms": p99_ms}
                | {"ratio": p99_ms / p50_ms}
            )

    def _beside(self) -> None:
        for length in self._fitting("beside", [self.options.document], 1):
            rounds = []
            for turn in range(self.options.rounds):
                progress(f"beside, {length} tokens, round {turn + 1} of {self.options.rounds}")
                rounds.append(self._measure_beside(length))
            medians = {name: median(figures[name] for figures in rounds) for name in rounds[0]}
            self.results.besides.append({"tokens": length} | medians)

    def _measure_beside(self, length: int) -> dict[str, float]:
        question = median(self._ttft(QUESTION_TOKENS) for _ in range(QUESTIONS))
        document = self._ttft(length)
        questions = [self._ids(QUESTION_TOKENS) for _ in range(QUESTIONS)]
        pauses = [self._random.uniform(0, document / QUESTIONS / 2) for _ in questions]
        answers, document_beside = measure_beside(self._engine, self._ids(length), questions, pauses)
        question_beside = median(answers)
        return {
            "question alone, ms": question * 1000,
            "question beside, ms": question_beside * 1000,
            "question beside/alone": question_beside / question,
            "document alone, ms": document * 1000,
            "document beside, ms": document_beside * 1000,
            "document beside/alone": document_beside / document,
        }

    def _ttft(self, length: int) -> float:
        return ttft([[*token_times(self._engine, self._ids(length), 1)]])

    def _profile(self) -> None:
        compiled = PackedForward(self._model, compiled=True) if self.options.compile else None
        decoder = self._engine.decoder
        kernel = decoder.kv_cache.kernel if isinstance(decoder, Batch) else None
        for rows in self.options.batches:
            progress(f"profile, {rows} rows")
            profiler = StepProfiler(self._model, rows, self.options.profile_context, kernel, compiled)
            self.results.profiles.append(profiler.measure(self.options.steps))

    def _hybrid(self) -> None:
        rows = self.options.hybrid_rows
        for name in self.options.hybrids:
            model = hybrid_model(name, self._model.dtype).to(self._model.device)
            parameters = sum(weight.numel() for weight in model.parameters())
            engine = TransformersEngine(model, self._engine.tokenizer, compile=self.options.compile)
            engine.load(max(rows), CONTEXT)
            try:
                if engine.batch_obstacle is not None:
                    self.results.left_out.append(f"hybrid {name} is skipped: {engine.batch_obstacle}")
                    continue
                times = self._time_hybrid(name, engine, int(model.config.vocab_size))
            finally:
                engine.close()
            for at, count in enumerate(rows):
                growth = median(turn[at] / turn[0] for turn in times)
                figures = {
                    "parameters, M": parameters / 1e6,
                    "rows": count,
                    "step, ms": median(turn[at] for turn in times),
                }
                self.results.hybrids.append({"hybrid": name, **figures, "growth": growth})

    def _time_hybrid(self, name: str, engine: TransformersEngine, vocabulary: int) -> list[list[float]]:
        """Return the milliseconds of a step for each number of rows, in each round."""
        runner = engine_runner(engine)
        times: list[list[float]] = []
        for turn in range(self.options.rounds + 1):
            progress(f"hybrid, {name}, round {turn} of {self.options.rounds}")
            steps = [
                step_s(runner([self._ids(8, vocabulary) for _ in range(count)], self.options.steps + 1)) * 1000
                for count in self.options.hybrid_rows
            ]
            if turn:  # oneDNN is slow with sizes that are new
                times.append(steps)
        return times

    def _lookup(self) -> None:
        progress(f"lookup, {max(self.options.cached)} sequences")
        self.results.lookups += measure_lookups(self.options.cached, self.options.rounds, self._random)

    def _memory(self) -> None:
        progress("memory")

        def create_engine(kv_cache_bytes: int) -> TransformersEngine:
            model = AutoModelForCausalLM.from_pretrained(self._source, dtype=self._model.dtype).to(self._model.device)
            return TransformersEngine(
                model, self._engine.tokenizer, kv_cache_bytes=kv_cache_bytes, compile=self.options.compile
            )

        token_bytes, context = self._engine.kv_token_bytes, min(CONTEXT, self.limit)
        if token_bytes is None or self._engine.batch_obstacle is not None:
            self.results.left_out.append(f"memory is skipped: {self._engine.batch_obstacle}")
            return
        self.results.chats.append(measure_chats(create_engine, context, token_bytes, self._ids))

    def _rounds(self, row: Row, measure: Callable[[Runner], list[float]], second: Row | None = None) -> None:
        for turn in range(self.options.rounds):
            progress(f"{row.part}, {row.at}, round {turn + 1} of {self.options.rounds}")
            for name, runner in self.runners.items():
                for target, value in zip((row, second), measure(runner), strict=False):
                    if target is not None:
                        getattr(target, name).append(value)

    def _ids(self, length: int, vocabulary: int | None = None) -> list[int]:
        return [self._random.randrange(vocabulary or self._vocabulary) for _ in range(length)]

    def _fitting(self, part: str, lengths: list[int], more: int) -> list[int]:
        """Return the lengths that fit into the model's context, with ``more`` tokens. Record the others."""
        self.results.left_out += [
            f"{part} of {length} tokens is skipped: the model's limit is {self.limit} tokens, including {more} more"
            for length in lengths
            if length + more > self.limit
        ]
        return [length for length in lengths if length + more <= self.limit]


def figures_table(rows: Sequence[Mapping[str, float | str]]) -> str:
    """Return a table of ``rows``, after an empty line."""
    cells = [tuple(map(show_figure, row.values())) for row in rows]
    return "\n\n" + table(tuple(rows[0]), cells)


def bandwidth(device: torch.device, mebibytes: int, rounds: int) -> float:
    """Return the memory bandwidth in bytes per second: the best of several sums of a large tensor."""
    large = torch.ones(mebibytes * 2**18, dtype=torch.float32, device=device)
    best = float("inf")
    for _ in range(rounds + 2):
        start = time.perf_counter()
        large.sum().item()
        best = min(best, time.perf_counter() - start)
    return large.numel() * large.element_size() / best


def read_options() -> argparse.Namespace:
    parser = new_parser("Measure the engine without HTTP, compared with plain model.generate.", HELP)
    add = parser.add_argument
    lengths, counts = integers(1, 1_000_000), integers(1, 256)
    add("--model", metavar="M", help="HuggingFace id, folder or .gguf file (default: the small model)")
    add("--quantize", choices=QUANTIZE_NAMES, help="convert the engine's linear layers to int8")
    add("--compile", action="store_true", help="compile the engine's model (compile=True)")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)")
    add(
        "--prompts",
        type=lengths,
        default=[64, 256, 1024],
        metavar="N,N",
        help="tokens of the prompts, for prefill (64,256,1024)",
    )
    add(
        "--contexts",
        type=lengths,
        default=[32, 512, 1024],
        metavar="N,N",
        help="tokens of the contexts, for decode (32,512,1024)",
    )
    add(
        "--batches",
        type=counts,
        default=[1, 2, 4, 8, 16, 32],
        metavar="N,N",
        help="concurrent answers, for batch and profile (1,2,4,8,16,32)",
    )
    add(
        "--stall-prompt",
        type=integer(2, 1_000_000),
        default=2000,
        metavar="N",
        help="tokens of the new prompt, for stall (2000)",
    )
    add(
        "--stall-answers",
        type=counts,
        default=[1, 4, 16],
        metavar="N,N",
        help="running answers, for stall (1,4,16)",
    )
    add(
        "--document",
        type=integer(1, 1_000_000),
        default=6000,
        metavar="N",
        help="tokens of the document, for beside (6000)",
    )
    add(
        "--profile-context",
        type=integer(1, 1_000_000),
        default=256,
        metavar="N",
        help="tokens of the context, for profile (256)",
    )
    add(
        "--histories",
        type=lengths,
        default=[200, 800, 1600],
        metavar="N,N",
        help="tokens of the histories, for turns and users (200,800,1600)",
    )
    add("--hybrids", nargs="+", choices=tuple(HYBRIDS), default=tuple(HYBRIDS), help="models, for hybrid (all)")
    add(
        "--hybrid-rows",
        type=counts,
        default=[1, 4, 16],
        metavar="N,N",
        help="concurrent answers, for hybrid (1,4,16)",
    )
    add(
        "--cached",
        type=integers(1, 100_000),
        default=[10, 10_000],
        metavar="N,N",
        help="cached sequences, for lookup (10,10000)",
    )
    add("--steps", type=integer(1, 100_000), default=16, metavar="N", help="steps of an answer (16)")
    add("--rounds", type=integer(1, 1000), default=3, metavar="N", help="rounds of each runner (3)")
    add("--read-mib", type=integer(1, 65_536), default=512, metavar="N", help="MiB to read for the floor (512)")
    add("--torch-threads", type=integer(1, 1024), metavar="N", help="threads of torch (default: torch's choice)")
    add("--seed", type=integer(0, 2**31), default=0, metavar="N", help="seed of the tokens (0)")
    options = parser.parse_args()
    try:
        options.located = locate(options.model)
    except FileNotFoundError as error:
        parser.error(str(error))
    return options


def main() -> int:
    options = read_options()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if options.torch_threads:
        torch.set_num_threads(options.torch_threads)
    results = Results()
    bench = EngineBench(options, results)
    code = OK
    try:
        try:
            bench.load()
        except (OSError, ValueError) as error:  # the model is missing
            print(f"engine.py: {first_line(error)}", file=sys.stderr)
            return WRONG_USE
        bench.run()
    except KeyboardInterrupt:
        print("Interrupted: results so far.")
        code = INTERRUPTED
    except (RuntimeError, OSError, ValueError) as error:
        print(f"engine.py: {first_line(error)}", file=sys.stderr)
        code = FAILED
    print(results.render())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions["torch_threads"] = str(torch.get_num_threads())
    hidden = ("located",)
    write_json(options, "engine", results.to_json(), interrupted=code == INTERRUPTED, hidden=hidden, **versions)
    return code or (FAILED if results.is_empty else OK)


def first_line(error: Exception) -> str:
    """Return the first line of the error's message."""
    return (str(error) or repr(error)).splitlines()[0]


if __name__ == "__main__":
    run_script(main)
