"""Timed generation of the same answers by the engine and by plain ``model.generate``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from aiochatstream import Engine, GenerationParams, Prompt
from aiochatstream.engines.transformers.cpu.openmp import release_idle_threads

TokenTimes = list[float]
"""Start of an answer, then the time of each of its tokens: clock readings in seconds."""

WARM_UP_TOKENS, UNLIMITED = 16, 1500
"""Tokens of an answer before another prompt arrives, and more tokens than it has time for."""

Runner = Callable[[list[list[int]], int], list[TokenTimes]]
"""Function that generates answers to prompts of equal length concurrently, with a number of tokens each."""


def engine_runner(engine: Engine) -> Runner:
    """Return a runner with a thread for each prompt, as in a server."""

    def run(prompts: list[list[int]], tokens: int) -> list[TokenTimes]:
        answers: list[TokenTimes] = []
        start = threading.Barrier(len(prompts))

        def answer(ids: list[int]) -> None:
            start.wait()
            answers.append([*token_times(engine, ids, tokens)])

        threads = [threading.Thread(target=answer, args=(ids,), daemon=True) for ids in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(answers) < len(prompts):
            raise RuntimeError("An answer failed in its thread.")
        return answers

    return run


def token_times(
    engine: Engine, ids: list[int], tokens: int, owner: str = "", shared: int = 0
) -> Generator[float, None, None]:
    """Yield the start of an answer, then the time of each token. ``owner`` and ``shared`` are those of Prompt."""
    params = GenerationParams(max_new_tokens=tokens, temperature=0.0, ignore_eos=True)
    yield time.perf_counter()
    for delta in engine.generate(Prompt([], ids, owner=owner, shared_tokens=shared), params):
        for _ in delta.token_ids:
            yield time.perf_counter()


@dataclass(frozen=True)
class Stall:
    """Seconds between tokens of running answers: before another prompt arrived, and during its prefill."""

    before: list[float]
    during: list[float]


def measure_stall(engine: Engine, prompts: list[list[int]], long_prompt: list[int]) -> Stall:
    """Generate answers to ``prompts``; add ``long_prompt`` after some tokens of each; stop after its prefill."""
    warmed_up = threading.Barrier(len(prompts) + 1)
    prefilled = threading.Event()
    answers: list[TokenTimes] = []

    def answer(ids: list[int]) -> None:
        times: TokenTimes = []
        with closing(token_times(engine, ids, UNLIMITED)) as tokens:
            for token_time in tokens:
                times.append(token_time)
                if len(times) == WARM_UP_TOKENS:
                    warmed_up.wait()
                if prefilled.is_set():
                    break
        answers.append(times)

    threads = [threading.Thread(target=answer, args=(ids,), daemon=True) for ids in prompts]
    for thread in threads:
        thread.start()
    warmed_up.wait()
    start, first = token_times(engine, long_prompt, 1)
    prefilled.set()
    for thread in threads:
        thread.join()
    gaps = [pair for _, *times in answers for pair in pairwise(times)]
    return Stall(
        [later - earlier for earlier, later in gaps if later < start],
        [later - earlier for earlier, later in gaps if later > start and earlier < first],
    )


def measure_beside(
    engine: Engine, document: list[int], questions: list[list[int]], pauses: list[float]
) -> tuple[list[float], float]:
    """Return the seconds to the first token of each question, which arrives while ``document`` is read, and of that.

    :param pauses: seconds before each question, from the end of the answer before it.

    Raise RuntimeError if the document was read before the last question was answered.
    """
    document_times: TokenTimes = []
    thread = threading.Thread(
        target=lambda: document_times.extend(token_times(engine, document, 1)), name="document", daemon=True
    )
    thread.start()
    seconds = []
    for question, pause in zip(questions, pauses, strict=True):
        time.sleep(pause)
        seconds.append(ttft([[*token_times(engine, question, 1)]]))
    if len(document_times) > 1:
        raise RuntimeError("The document was read before the last question was answered: it must be longer.")
    thread.join()
    return seconds, ttft([document_times])


class TimingStreamer:
    """A streamer for model.generate, which passes the prompts first, then a token of each answer at a time."""

    def __init__(self) -> None:
        self.times: TokenTimes = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def plain_runner(model: Any) -> Runner:
    """Return a runner that passes all prompts to model.generate as one batch."""

    @torch.inference_mode()
    def run(prompts: list[list[int]], tokens: int) -> list[TokenTimes]:
        streamer = TimingStreamer()
        start = time.perf_counter()
        inputs = torch.tensor(prompts, device=model.device)
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            streamer=streamer,
            pad_token_id=0,
        )
        release_idle_threads()  # they would slow the engine down
        return [[start, *streamer.times[1:]]] * len(prompts)

    return run


def ttft(answers: list[TokenTimes]) -> float:
    """Return the seconds to the first token of a single answer."""
    ((start, first, *_),) = answers
    return first - start


def step_s(answers: list[TokenTimes]) -> float:
    """Return the median seconds between tokens of all answers."""
    return median(later - earlier for _, *times in answers for earlier, later in pairwise(times))
