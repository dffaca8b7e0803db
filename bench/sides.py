"""Two ways to the same answer, with the time of each of its tokens: the engine, and plain ``model.generate``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from aiochatstream import Engine, GenerationParams, Prompt

Stamps = list[float]
"""When an answer began, and when each of its tokens came: clock readings in seconds."""

Side = Callable[[list[int], int], Stamps]
"""Answers a prompt with so many tokens."""


def engine_side(engine: Engine) -> Side:
    def answer(ids: list[int], tokens: int) -> Stamps:
        params = GenerationParams(max_new_tokens=tokens, temperature=0.0, ignore_eos=True)
        stamps = [time.perf_counter()]
        for delta in engine.generate(Prompt([], ids), params):
            stamps += [time.perf_counter()] * len(delta.token_ids)
        return stamps

    return answer


class Stamper:
    """A streamer for model.generate: the prompt comes first, then each token."""

    def __init__(self) -> None:
        self.stamps: Stamps = []

    def put(self, value: Any) -> None:
        self.stamps.append(time.perf_counter())

    def end(self) -> None:
        pass


def plain_side(model: Any) -> Side:
    @torch.inference_mode()
    def answer(ids: list[int], tokens: int) -> Stamps:
        stamper = Stamper()
        began = time.perf_counter()
        inputs = torch.tensor([ids], device=model.device)
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            streamer=stamper,
            pad_token_id=0,
        )
        return [began, *stamper.stamps[1:]]

    return answer


def ttft(stamps: Stamps) -> float:
    return stamps[1] - stamps[0]


def step_s(stamps: Stamps) -> float:
    return (stamps[-1] - stamps[1]) / (len(stamps) - 2)


def at_once(side: Side, prompts: list[list[int]], tokens: int) -> list[Stamps]:
    """A thread for each prompt. Raises RuntimeError where one of them failed."""
    answers: list[Stamps] = []
    start = threading.Barrier(len(prompts))

    def answer(ids: list[int]) -> None:
        start.wait()
        answers.append(side(ids, tokens))

    threads = [threading.Thread(target=answer, args=(ids,), daemon=True) for ids in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(answers) < len(prompts):
        raise RuntimeError("An answer failed in its thread.")
    return answers
