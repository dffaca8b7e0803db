"""Tests of engines on devices that a CPU imitates: answers, the placement of tensors, and waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from aiochatstream.engines.transformers import TransformersEngine, engine
from aiochatstream.engines.transformers.batch import Batch
from tests.engines.transformers.engine_harness import (
    answer,
    concurrent_answers,
    concurrent_deltas,
    deltas_of,
    tokens_of,
)
from tests.engines.transformers.fake_devices import FakeDevice
from tests.engines.transformers.tiny_models import BYTES, assert_same, reference, some_ids, tiny

LAYERS = {"Gemma 2": 2}
"""Number of layers of the models, by family: one, unless its layers have different windows."""

NEW_TOKENS = 5

REQUESTS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 1, "logprobs": 2},
    {"temperature": 1.0, "seed": 2, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95},
    {"temperature": 0.0, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "presence_penalty": 0.5},
    {"temperature": 0.7, "seed": 3, "logit_bias": {70: 2.0}, "repetition_penalty_method": "subtractive"},
]


@pytest.fixture(params=["cuda", "mps"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    """A device on which the test and the threads of batches compute."""
    device = FakeDevice(request.param)
    run = Batch._run

    def run_on_device(batch: Batch) -> None:
        with device:
            run(batch)

    monkeypatch.setattr(Batch, "_run", run_on_device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 28, 1 << 30))
    monkeypatch.setattr(engine, "WARM_UP_PARAMS", ())  # imitation is slow
    with device:
        yield device


def load(family: str, device: FakeDevice, dtype: torch.dtype = torch.float32) -> tuple[TransformersEngine, list[int]]:
    """Return an engine on ``device``, and a list that it fills with the number of waits in each step."""
    waits: list[int] = []
    loaded = TransformersEngine(tiny(family, LAYERS.get(family, 1)).to(dtype), BYTES, device.device)

    def record(kind: str, seconds: float) -> None:
        waits.append(len(device.waits))
        device.waits.clear()

    loaded.on_step = record
    loaded.load(slots=len(REQUESTS), context_len=256)
    waits.clear()
    device.waits.clear()
    return loaded, waits


@pytest.mark.parametrize("family", ["Llama", "Gemma 2"])
def test_answers_are_those_of_generate(device: FakeDevice, family: str) -> None:
    loaded, _ = load(family, device)
    assert loaded.batch_obstacle is None
    prompts = [some_ids(length, seed) for seed, length in enumerate((1, 30, 90))]
    plain = tiny(family, LAYERS.get(family, 1))
    for _ in range(2):  # the second time with cached prefixes
        answers = concurrent_answers(loaded, prompts, max_new_tokens=NEW_TOKENS, ignore_eos=True)
        for ids, actual in zip(prompts, answers, strict=True):
            assert_same(plain, ids, actual, reference(plain, ids, NEW_TOKENS))
    assert loaded.metrics()["prefix_cache_hits_total"] >= 2
    loaded.close()


def test_the_host_waits_once_per_step(device: FakeDevice) -> None:
    loaded, waits = load("Llama", device)
    on_cpu = TransformersEngine(tiny("Llama", 1), BYTES)
    on_cpu.load(slots=len(REQUESTS), context_len=256)
    requests = [(some_ids(20, seed), options | {"max_new_tokens": NEW_TOKENS}) for seed, options in enumerate(REQUESTS)]
    answers, expected = concurrent_deltas(loaded, requests), concurrent_deltas(on_cpu, requests)
    assert [tokens_of(deltas) for deltas in answers] == [tokens_of(deltas) for deltas in expected]
    assert sum(len(delta.logprobs) for delta in answers[1]) == NEW_TOKENS
    assert set(waits) == {1}
    loaded.close()
    on_cpu.close()


def test_the_host_waits_once_per_step_in_half_precision(device: FakeDevice) -> None:
    loaded, waits = load("Llama", device, torch.bfloat16)
    assert isinstance(loaded.decoder, Batch)
    assert loaded.decoder.kv_cache.kernel == ("varlen" if device.device.type == "cuda" else None)
    answers = concurrent_answers(loaded, [some_ids(20, seed) for seed in range(3)], max_new_tokens=3, ignore_eos=True)
    assert [len(tokens) for tokens in answers] == [3, 3, 3]
    assert set(waits) == {1}
    loaded.close()


def test_logprobs_are_those_of_a_cpu(device: FakeDevice) -> None:
    loaded, _ = load("Llama", device)
    on_cpu = TransformersEngine(tiny("Llama", 1), BYTES)
    on_cpu.load(slots=2, context_len=256)
    for ids, options in ((some_ids(20), {"logprobs": 3}), (some_ids(40), {"logprobs": 2, "prompt_logprobs": True})):
        answers = [
            [logprob for delta in deltas_of(loader, ids, max_new_tokens=2, **options) for logprob in delta.logprobs]
            for loader in (loaded, on_cpu)
        ]
        assert len(answers[0]) == len(answers[1]) > 0
        for actual, expected in zip(*answers, strict=True):
            assert actual.token_id == expected.token_id
            assert actual.logprob == pytest.approx(expected.logprob, abs=1e-4)
    loaded.close()
    on_cpu.close()


def test_models_that_are_not_batched_answer_on_the_device(device: FakeDevice) -> None:
    loaded, _ = load("Mamba", device)
    plain, ids = tiny("Mamba", 1), some_ids(20)
    actual = answer(loaded, ids, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    assert_same(plain, ids, actual, reference(plain, ids, NEW_TOKENS))
    loaded.close()
