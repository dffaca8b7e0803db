"""A trial of the engine on a GPU: `make test-gpu`. The exit status is 1 if a check fails.

It needs no network, no model files and no test tools. The models have random weights. With `--device cpu --tiny`, the
script itself is tested without a GPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from aiochatstream import GenerationParams, Prompt
from aiochatstream.engines.transformers import TransformersEngine
from tests.engines.transformers.tiny_models import BYTES, some_ids, tiny

PATIENCE = 10.0
"""Seconds to wait for a row to become free."""

EXACT_TOKENS = 24

LIMIT_POSITION = 100
"""Position that a short answer does not reach."""

TIE = 1e-3
"""Difference of logits below which two tokens count as equally likely."""


@dataclass(frozen=True)
class Scale:
    """Size of the measured model and of its requests, and the families and prompt lengths of exact answers."""

    config: dict[str, int]
    context_len: int
    prompt_tokens: int
    new_tokens: int
    rows: tuple[int, ...]
    long_prompt: int
    families: tuple[str, ...]
    exact_lengths: tuple[int, ...]


ONE_BILLION = Scale(
    {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    context_len=4096,
    prompt_tokens=256,
    new_tokens=128,
    rows=(1, 8, 32, 64),
    long_prompt=4000,
    families=("Llama", "Qwen3", "Gemma 2", "Gemma 3", "Mistral"),
    exact_lengths=(1, 40, 300, 700),
)
TINY = Scale(
    {
        "vocab_size": 500,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    context_len=512,
    prompt_tokens=20,
    new_tokens=8,
    rows=(1, 4),
    long_prompt=400,
    families=("Llama",),
    exact_lengths=(1, 40),
)


class Answer:
    """An answer of an engine, read in the caller's thread.

    tokens: its token ids so far.
    first, end: times of the first token and of the end, in seconds after the start of the measurement.
    """

    def __init__(self, engine: TransformersEngine, ids: Sequence[int], new_tokens: int, **params: Any) -> None:
        options = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": new_tokens} | params
        self._deltas = engine.generate(Prompt([], list(ids), chat=False), GenerationParams(**options))
        self.tokens: list[int] = []
        self.first = self.end = 0.0

    def read(self, limit: int | None = None, start: float = 0.0) -> list[int]:
        """Read to the end, or close the answer after ``limit`` tokens; return the tokens."""
        for delta in self._deltas:
            if delta.token_ids and not self.tokens:
                self.first = time.perf_counter() - start
            self.tokens += delta.token_ids
            if limit is not None and len(self.tokens) >= limit:
                self._deltas.close()
                break
        self.end = time.perf_counter() - start
        return self.tokens


class Trial:
    """The checks and measurements on one device.

    :param compiles: whether models are compiled as well.
    """

    def __init__(self, device: torch.device, scale: Scale, *, compiles: bool) -> None:
        self._device, self._scale, self._compiles = device, scale, compiles
        self._start = time.perf_counter()
        self.failures: list[str] = []

    def run(self, check: Callable[[], None]) -> None:
        """Run a check; report its result and how long it took."""
        start = time.perf_counter()
        name = check.__name__.replace("_", " ")
        try:
            check()
        except Exception:  # noqa: BLE001 - the other checks run all the same
            traceback.print_exc()
            self.failures.append(name)
            self.report("FAILED", f"{name}, {time.perf_counter() - start:.1f} s")
        else:
            self.report("passed", f"{name}, {time.perf_counter() - start:.1f} s")

    def report(self, title: str, text: str) -> None:
        """Print a line with the time since the start."""
        print(f"{time.perf_counter() - self._start:6.1f} s  {title}: {text}", flush=True)

    def exact_answers(self) -> None:
        """Compare concurrent greedy answers in float32 with those of ``model.generate``, also with cached prefixes."""
        for family in self._scale.families:
            self._compare(family, compiled=False)

    def exact_answers_of_a_compiled_model(self) -> None:
        """Compare the answers of a compiled model."""
        if self._compiles:
            self._compare("Llama", compiled=True)

    def batching(self) -> None:
        """Count steps: concurrent answers share them."""
        rows, steps = 8, list[str]()
        with self._engine(tiny("Llama"), slots=rows, on_step=lambda kind, seconds: steps.append(kind)) as engine:
            steps.clear()  # of the engine's warm-up
            concurrent(engine, [some_ids(30, seed) for seed in range(rows)], EXACT_TOKENS)
        assert len(steps) <= EXACT_TOKENS + 2 * rows, f"{len(steps)} steps for {rows} answers"

    def sampling(self) -> None:
        """Compare sampled answers with those of a CPU: equal seeds draw equal tokens, except from unequal sums."""
        params = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 5}
        answers = []
        for device in (self._device, torch.device("cpu")):
            with self._engine(tiny("Llama"), device=device) as engine:
                answers.append([Answer(engine, some_ids(30, seed), 24, **params).read() for seed in range(4)])
        equal = sum(first == second for first, second in zip(*answers, strict=True))
        assert equal >= 3, answers

    def cancellation(self) -> None:
        """Close an answer while another one runs: its row becomes free, and the other answer stays exact."""
        ids, expected = some_ids(40), reference(tiny("Llama").to(self._device), some_ids(40), EXACT_TOKENS)
        with self._engine(tiny("Llama"), slots=2) as engine, ThreadPoolExecutor(2) as threads:
            closed = threads.submit(Answer(engine, some_ids(20, 1), 500).read, 3)
            whole = threads.submit(Answer(engine, ids, EXACT_TOKENS).read)
            assert len(closed.result()) >= 3
            assert_same(tiny("Llama").to(self._device), ids, whole.result(), expected)
            assert Answer(engine, ids, EXACT_TOKENS).read() == whole.result()
            deadline = time.monotonic() + PATIENCE
            while engine.metrics()["batch_size"]:
                assert time.monotonic() < deadline, "a row does not become free"
                time.sleep(0.01)

    def out_of_memory(self) -> None:
        """Let a long prompt run out of memory: only this request fails, and it works when there is memory again."""
        short_ids, long_ids = self._random_ids(20, 2), self._random_ids(self._scale.long_prompt, 1)
        short_params, long_params = (GenerationParams(max_new_tokens=count, temperature=0.0) for count in (64, 2))
        with self._engine(self._measured_model(), self._tokenizer(), slots=2) as engine:
            decoder: Any = engine.decoder
            with self._memory_limit(decoder):
                with decoder.wake:  # the first step has both prompts
                    short, long = decoder.submit(short_ids, short_params), decoder.submit(long_ids, long_params)
                try:
                    list(long.steps())
                except MemoryError as error:
                    self.report("out of memory", str(error).splitlines()[0][:100])
                else:
                    raise AssertionError("the long prompt did not run out of memory")
                assert len([token for token in short.steps() if token is not None]) == 64
            assert len(Answer(engine, long_ids, 2).read()) == 2

    def speed(self) -> None:
        """Measure answers of a large model in bfloat16, beside ``model.generate``, and compiled."""
        self._measure("model.generate", None)
        for compiled in (False, True) if self._compiles else (False,):
            start = time.perf_counter()
            slots = max(self._scale.rows)
            with self._engine(self._measured_model(), self._tokenizer(), slots=slots, compile=compiled) as engine:
                cache = getattr(engine.decoder, "kv_cache", None)
                kernel = getattr(cache, "kernel", None) or "torch's own operations"
                self.report(
                    "loaded", f"in {time.perf_counter() - start:.1f} s; compile={compiled}; attention by {kernel}"
                )
                self._measure(f"engine, compile={compiled}", engine)

    def _compare(self, family: str, *, compiled: bool) -> None:
        plain = tiny(family).to(self._device)
        prompts = [some_ids(length, seed) for seed, length in enumerate(self._scale.exact_lengths)]
        expected = [reference(plain, ids, EXACT_TOKENS) for ids in prompts]
        with self._engine(copy.deepcopy(plain), slots=len(prompts), compile=compiled) as engine:
            assert engine.batch_obstacle is None, f"{family}: {engine.batch_obstacle}"
            for _ in range(2):
                answers = concurrent(engine, prompts, EXACT_TOKENS)
                for ids, answer, tokens in zip(prompts, answers, expected, strict=True):
                    assert_same(plain, ids, answer.tokens, tokens)
            assert engine.metrics()["prefix_cache_hits_total"] >= 1

    def _measure(self, name: str, engine: TransformersEngine | None) -> None:
        scale = self._scale
        model = None if engine is not None else self._measured_model()
        for rows in scale.rows:
            prompts = [self._random_ids(scale.prompt_tokens, 100 * rows + row) for row in range(rows)]
            if engine is None:
                generate(model, prompts, 2)  # the first call is slow
                first, seconds = (generate(model, prompts, count) for count in (1, scale.new_tokens))
            else:
                answers = concurrent(engine, prompts, scale.new_tokens)
                first, seconds = statistics.median(answer.first for answer in answers), max(a.end for a in answers)
            speed = rows * scale.new_tokens / seconds
            self.report(name, f"{rows:3} rows: {speed:8.1f} tokens/s, time to first token p50 {first * 1000:7.1f} ms")

    @contextmanager
    def _engine(
        self, model: Any, tokenizer: Any = BYTES, device: torch.device | None = None, **options: Any
    ) -> Iterator[TransformersEngine]:
        slots, on_step = options.pop("slots", 4), options.pop("on_step", None)
        engine = TransformersEngine(model, tokenizer, device or self._device, **options)
        if on_step is not None:
            engine.on_step = on_step
        engine.load(slots=slots, context_len=self._scale.context_len if tokenizer is not BYTES else 1024)
        try:
            yield engine
        finally:
            engine.close()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    @contextmanager
    def _memory_limit(self, decoder: Any) -> Iterator[None]:
        """Let steps run out of memory from position `LIMIT_POSITION` on, whatever the sizes of their chunks."""
        forward = decoder.forward

        def limited(step: Any) -> torch.Tensor:
            if step.positions.max() >= LIMIT_POSITION:
                if self._device.type != "cuda":
                    raise torch.OutOfMemoryError("imitated")
                total = torch.cuda.get_device_properties(self._device).total_memory
                torch.empty(total, dtype=torch.int8, device=self._device)
            logits: torch.Tensor = forward(step)
            return logits

        decoder.forward = limited
        try:
            yield
        finally:
            decoder.forward = forward

    def _measured_model(self) -> Any:
        config = LlamaConfig(
            **self._scale.config, max_position_embeddings=self._scale.context_len, tie_word_embeddings=False
        )
        torch.manual_seed(0)
        with self._device:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.generation_config.eos_token_id = None
        return model.eval()

    def _tokenizer(self) -> Any:
        words = {f"w{id_}": id_ for id_ in range(self._scale.config["vocab_size"])}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))  # noqa: S106

    def _random_ids(self, count: int, seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self._scale.config["vocab_size"], (count,), generator=generator).tolist()


def concurrent(engine: TransformersEngine, prompts: Sequence[list[int]], new_tokens: int) -> list[Answer]:
    """Return concurrent answers, read to their ends."""
    answers = [Answer(engine, ids, new_tokens) for ids in prompts]
    ready = threading.Barrier(len(prompts) + 1)

    def read(answer: Answer) -> None:
        ready.wait()
        answer.read(start=start[0])

    start = [0.0]
    with ThreadPoolExecutor(len(prompts)) as threads:
        results = [threads.submit(read, answer) for answer in answers]
        start[0] = time.perf_counter()
        ready.wait()
        for result in results:
            result.result()
    return answers


@torch.inference_mode()
def generate(model: Any, prompts: Sequence[list[int]], new_tokens: int) -> float:
    """Generate answers to prompts of one length by ``model.generate``; return the seconds."""
    inputs = torch.tensor(prompts, device=model.device)
    start = time.perf_counter()
    output = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0
    )
    output.tolist()  # wait for the device
    return time.perf_counter() - start


@torch.inference_mode()
def reference(model: Any, ids: list[int], new_tokens: int) -> list[int]:
    """Return the greedy answer of ``model.generate``."""
    inputs = torch.tensor([ids], device=model.device)
    output = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0
    )
    new: list[int] = output[0, len(ids) :].tolist()
    return new


@torch.inference_mode()
def assert_same(model: Any, ids: list[int], actual: list[int], expected: list[int]) -> None:
    """Assert that two answers are equal up to a position where ``model`` has two equally likely tokens."""
    if actual == expected:
        return
    same = next(at for at, (token, other) in enumerate(zip(actual, expected, strict=True)) if token != other)
    inputs = torch.tensor([ids + expected[:same]], device=model.device)
    best = model(input_ids=inputs).logits[0, -1].topk(2).values
    assert best[0] - best[1] < TIE, f"token {same}: {actual} is not {expected}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trial; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda:0"))
    parser.add_argument("--tiny", action="store_true", help="measure a tiny model")
    parser.add_argument("--skip-compile", action="store_true", help="leave out compiled models")
    options = parser.parse_args(arguments)
    if options.device.type == "cpu":
        torch.set_num_threads(1)  # torch's threads wait in busy loops
    trial = Trial(options.device, TINY if options.tiny else ONE_BILLION, compiles=not options.skip_compile)
    name = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else str(options.device)
    trial.report("device", f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    for check in (
        trial.exact_answers,
        trial.exact_answers_of_a_compiled_model,
        trial.batching,
        trial.sampling,
        trial.cancellation,
        trial.out_of_memory,
        trial.speed,
    ):
        trial.run(check)
    trial.report("result", f"failed: {', '.join(trial.failures)}" if trial.failures else "all checks passed")
    return int(bool(trial.failures))


if __name__ == "__main__":
    sys.exit(main())
