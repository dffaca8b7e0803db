"""Two ways to the same answers, with the time of each of their tokens: the engine, and plain ``model.generate``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from aiochatstream import Engine, GenerationParams, Prompt
from aiochatstream.engines.transformers.cpu.openmp import release_idle_threads

Stamps = list[float]
"""When an answer began, and when each of its tokens came: clock readings in seconds."""

CALM, ENDLESS = 16, 1500
"""Tokens of an answer until a prompt disturbs it, and more than it has time for."""

Side = Callable[[list[list[int]], int], list[Stamps]]
"""Answers prompts of one length together, with so many tokens each."""


def engine_side(engine: Engine) -> Side:
    """A thread for each prompt, as in a server."""

    def answer(prompts: list[list[int]], tokens: int) -> list[Stamps]:
        answers: list[Stamps] = []
        start = threading.Barrier(len(prompts))

        def one(ids: list[int]) -> None:
            start.wait()
            answers.append([*stamped(engine, ids, tokens)])

        threads = [threading.Thread(target=one, args=(ids,), daemon=True) for ids in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(answers) < len(prompts):
            raise RuntimeError("An answer failed in its thread.")
        return answers

    return answer


def stamped(engine: Engine, ids: list[int], tokens: int, owner: str = "", shared: int = 0) -> Iterator[float]:
    """When an answer begins, and when each of its tokens comes. The last two: as in :class:`Prompt`."""
    params = GenerationParams(max_new_tokens=tokens, temperature=0.0, ignore_eos=True)
    yield time.perf_counter()
    for delta in engine.generate(Prompt([], ids, owner=owner, shared_tokens=shared), params):
        for _ in delta.token_ids:
            yield time.perf_counter()


@dataclass(frozen=True)
class Stall:
    """Seconds between tokens of the answers under way: before a prompt arrived, and until its first token."""

    before: list[float]
    meanwhile: list[float]


def stall(engine: Engine, prompts: list[list[int]], disturbing: list[int]) -> Stall:
    """Some answers; a prompt arrives when each of them has found its pace, and they end when it has been read."""
    calm = threading.Barrier(len(prompts) + 1)
    read = threading.Event()
    answers: list[Stamps] = []

    def one(ids: list[int]) -> None:
        stamps: Stamps = []
        with closing(stamped(engine, ids, ENDLESS)) as coming:
            for stamp in coming:
                stamps.append(stamp)
                if len(stamps) == CALM:
                    calm.wait()
                if read.is_set():
                    break
        answers.append(stamps)

    threads = [threading.Thread(target=one, args=(ids,), daemon=True) for ids in prompts]
    for thread in threads:
        thread.start()
    calm.wait()
    arrived, first = stamped(engine, disturbing, 1)
    read.set()
    for thread in threads:
        thread.join()
    gaps = [pair for _, *stamps in answers for pair in pairwise(stamps)]
    return Stall(
        [later - earlier for earlier, later in gaps if later < arrived],
        [later - earlier for earlier, later in gaps if later > arrived and earlier < first],
    )


class Stamper:
    """A streamer for model.generate: the prompts come first, then a token of each."""

    def __init__(self) -> None:
        self.stamps: Stamps = []

    def put(self, value: Any) -> None:
        self.stamps.append(time.perf_counter())

    def end(self) -> None:
        pass


def plain_side(model: Any) -> Side:
    """All prompts as one batch."""

    @torch.inference_mode()
    def answer(prompts: list[list[int]], tokens: int) -> list[Stamps]:
        stamper = Stamper()
        began = time.perf_counter()
        inputs = torch.tensor(prompts, device=model.device)
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            streamer=stamper,
            pad_token_id=0,
        )
        release_idle_threads()  # which would slow the other side down
        return [[began, *stamper.stamps[1:]]] * len(prompts)

    return answer


def ttft(answers: list[Stamps]) -> float:
    """Seconds to the first token, of a single answer."""
    ((began, first, *_),) = answers
    return first - began


def step_s(answers: list[Stamps]) -> float:
    """Seconds of the usual step: the median time from one token to the next, of all."""
    return median(later - earlier for _, *stamps in answers for earlier, later in pairwise(stamps))
