"""Tests of sampling: the distribution compared with transformers' processors, and the independence of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from aiochatstream.engines.transformers import sampling
from aiochatstream.engines.transformers.sampler import Sampler
from aiochatstream.engines.transformers.sampling import sample
from aiochatstream.params import GenerationParams
from tests.engines.transformers.fake_devices import FakeDevice

GRID = 4000
BELOW_1 = 1 - 2**-53
"""Maximum result of ``random.random()``."""


def logits_of(vocabulary: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def sampler_of(number: float | None = None, **params: Any) -> Sampler:
    sampler = Sampler(GenerationParams(**params))
    if number is not None:
        sampler.number = number
    return sampler


def tokens_at(logits: torch.Tensor, numbers: torch.Tensor, seen: list[int], **params: Any) -> list[int]:
    """Return the tokens for random numbers."""
    samplers = [sampler_of(number, **params) for number in numbers.tolist()]
    return sample(logits.expand(len(samplers), -1).clone(), samplers, [seen] * len(samplers))


def probabilities_of(logits: torch.Tensor, seen: list[int], params: dict[str, Any]) -> torch.Tensor:
    """Return the probabilities [vocabulary] of transformers' ``generate``."""
    processors: list[Any] = []
    if "repetition_penalty" in params:
        processors.append(RepetitionPenaltyLogitsProcessor(params["repetition_penalty"]))
    if "temperature" in params:
        processors.append(TemperatureLogitsWarper(params["temperature"]))
    if params.get("top_k"):
        processors.append(TopKLogitsWarper(params["top_k"]))
    if params.get("top_p", 1.0) < 1:
        processors.append(TopPLogitsWarper(params["top_p"]))
    if params.get("min_p"):
        processors.append(MinPLogitsWarper(params["min_p"]))
    if params.get("typical_p", 1.0) < 1:
        processors.append(TypicalLogitsWarper(params["typical_p"]))
    probabilities: torch.Tensor = LogitsProcessorList(processors)(torch.tensor([seen]), logits.clone()).softmax(-1)[0]
    return probabilities


@pytest.mark.parametrize("vocabulary", [30, 3000])  # fewer and more than the candidates
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 1000},
        {"top_p": 0.0},
        {"top_p": 0.1},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"top_k": 12, "top_p": 0.6},
        {"top_k": 12, "top_p": 0.6, "temperature": 1.7},
        {"min_p": 0.02},
        {"min_p": 0.3, "temperature": 0.6},
        {"min_p": 1.0},
        {"min_p": 0.1, "top_k": 30, "top_p": 0.9},
        {"typical_p": 0.2},
        {"typical_p": 0.9, "temperature": 1.5},
        {"typical_p": 0.5, "top_k": 20},
        {"typical_p": 0.5, "top_p": 0.8},
        {"typical_p": 0.7, "top_k": 25, "top_p": 0.9, "min_p": 0.05, "temperature": 1.3},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.4, "top_p": 0.8, "temperature": 0.7},
    ],
    ids=str,
)
def test_the_frequencies_of_tokens_are_those_of_transformers(params: dict[str, Any], vocabulary: int) -> None:
    logits, seen = logits_of(vocabulary), [1, 5, 5, 9, 20]
    expected = probabilities_of(logits, seen, params)
    numbers = (torch.arange(GRID) + 0.5) / GRID
    counts = torch.bincount(torch.tensor(tokens_at(logits, numbers, seen, **params)), minlength=vocabulary)
    assert not counts[expected == 0].any(), "a token was drawn that transformers excludes"
    assert counts[expected > 1.01 / GRID].all(), "a token was never drawn"
    assert (counts - expected * GRID).abs().max() <= 1.5


def test_a_flat_distribution_uses_more_than_the_candidates() -> None:
    vocabulary = 3 * sampling.CANDIDATES
    logits = logits_of(vocabulary, spread=0.01)
    expected = probabilities_of(logits, [0], {"top_p": 0.9})
    numbers = (torch.arange(GRID) + 0.5) / GRID
    tokens = set(tokens_at(logits, numbers, [0], top_p=0.9))
    assert (expected > 0).sum() > sampling.CANDIDATES
    assert tokens <= set(expected.nonzero()[:, 0].tolist())
    assert len(tokens) > sampling.CANDIDATES


@pytest.mark.parametrize("number", [0.0, 5e-324, 0.5, BELOW_1])
@pytest.mark.parametrize(
    "params",
    [
        {"top_p": 5e-324},
        {"top_p": 1e-40, "top_k": 5},
        {"top_k": 1},
        {"top_k": 1, "top_p": 5e-324, "temperature": 2.0},
        {"temperature": 1e-4},
        {"min_p": 1.0},
        {"min_p": 1.0, "top_p": 0.9, "typical_p": 5e-324},
        {"top_k": 1, "typical_p": 0.5},
        {"temperature": 5e-324},
        {"temperature": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("vocabulary", [3, 50, 3000])
def test_extreme_parameters_that_leave_one_token_draw_the_most_likely(
    vocabulary: int, params: dict[str, Any], number: float
) -> None:
    logits = logits_of(vocabulary, 1)
    options = {"temperature": 1.0} | params
    assert sample(logits, [sampler_of(number, **options)], [[0]]) == [int(logits.argmax())]


@pytest.mark.parametrize("number", [0.0, 5e-324, BELOW_1])
@pytest.mark.parametrize("params", [{}, {"top_k": 4}, {"top_p": 0.7}, {"top_k": 1000, "top_p": 0.99}], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_extreme_random_numbers_draw_possible_tokens(params: dict[str, Any], number: float, seed: int) -> None:
    logits = logits_of(2000, seed)
    logits[0, ::3] = -torch.inf
    token = sample(logits.clone(), [sampler_of(number, **params)], [[0]])[0]
    assert probabilities_of(logits, [0], params)[token] > 0


any_params = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-5, 0.5, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 3, 40, 1000]),
        "top_p": st.sampled_from([5e-324, 0.2, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 5e-324, 0.1, 1.0]),
        "typical_p": st.sampled_from([5e-324, 0.3, 0.95, 1.0, 1.0]),
        "repetition_penalty": st.sampled_from([0.01, 1.0, 1.3, 10.0]),
        "repetition_penalty_method": st.sampled_from(["multiplicative", "subtractive"]),
        "presence_penalty": st.sampled_from([0.0, -2.0, 0.7]),
        "frequency_penalty": st.sampled_from([0.0, 0.5]),
        "no_repeat_ngram_size": st.sampled_from([0, 0, 1, 2]),
        "logit_bias": st.sampled_from([{}, {3: 2.5}, {1: -100, 19: 4}]),
        "seed": st.integers(0, 2**63 - 1),
    }
)


@settings(max_examples=40, deadline=None)
@given(st.lists(any_params, min_size=1, max_size=6), st.sampled_from([20, 2500]))
def test_each_row_is_drawn_independently_of_the_others(rows: list[dict[str, Any]], vocabulary: int) -> None:
    logits = torch.cat([logits_of(vocabulary, seed) for seed in range(len(rows))])
    before = logits.clone()
    seen = [list(range(1, 4 + row)) for row in range(len(rows))]
    samplers = [sampler_of(**params) for params in rows]
    answers = [sample(logits, samplers, seen) for _ in range(3)]
    assert torch.equal(logits, before), "the input was modified"
    for row, params in enumerate(rows):
        single = sampler_of(**params)
        assert [answer[row] for answer in answers] == [
            sample(logits[row : row + 1], [single], [seen[row]])[0] for _ in answers
        ]


def test_a_seed_determines_the_draws() -> None:
    logits = logits_of(500, spread=0.1)

    def draws(seed: int, count: int) -> list[int]:
        sampler = sampler_of(seed=seed)
        return [sample(logits, [sampler], [[0]])[0] for _ in range(count)]

    first = draws(7, 12)
    assert draws(7, 12) == first
    assert draws(8, 12) != first
    assert len(set(first)) > 3


def test_a_failed_draw_changes_neither_samplers_nor_logits() -> None:
    logits = torch.cat([logits_of(50, seed) for seed in range(2)])
    before = logits.clone()
    first, second = (sampler_of(repetition_penalty=2.0, seed=3) for _ in range(2))
    with pytest.raises(IndexError):
        sample(logits, [first, second], [[1, 2], [1, 9999]])
    assert torch.equal(logits, before)
    unused = sampler_of(repetition_penalty=2.0, seed=3)
    assert [sample(logits[:1], [first], [[1, 2]]) for _ in range(3)] == [
        sample(logits[:1], [unused], [[1, 2]]) for _ in range(3)
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_other_dtypes_are_sampled_in_float32(dtype: torch.dtype) -> None:
    logits = logits_of(100).to(dtype)
    first, second = (sampler_of(top_k=5, temperature=0.7) for _ in range(2))
    assert sample(logits, [first], [[0]]) == sample(logits.float(), [second], [[0]])


class AllowEvenTokens:
    """The state of an answer in a grammar that excludes odd tokens."""

    forced_token = None

    def __init__(self, vocabulary: int) -> None:
        allowed = np.arange(-(-vocabulary // 32) * 32) % 2 == 0
        self.mask = np.packbits(allowed, bitorder="little").view(np.int32)

    def advance(self, token: int) -> None:
        assert token % 2 == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cuda", "mps"])
@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(any_params, st.booleans()), min_size=1, max_size=4), st.sampled_from([20, 2500]))
def test_devices_draw_as_a_cpu_does_and_the_host_waits_only_once(
    kind: Any, rows: list[tuple[dict[str, Any], bool]], vocabulary: int
) -> None:
    logits = torch.cat([logits_of(vocabulary, seed) for seed in range(len(rows))])
    seen = [[1, 2, 1][: 1 + row] for row in range(len(rows))]

    def samplers() -> list[Sampler]:
        matchers: list[Any] = [AllowEvenTokens(vocabulary) if masked else None for _, masked in rows]
        return [
            Sampler(GenerationParams(**params), matcher) for (params, _), matcher in zip(rows, matchers, strict=True)
        ]

    on_cpu, on_device = samplers(), samplers()
    with FakeDevice(kind) as device:
        copied = logits.to(device.device)
        for _ in range(2):
            device.waits.clear()
            assert sample(copied, on_device, seen) == sample(logits, on_cpu, seen)
            assert len(device.waits) == 1


@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_an_error(params: dict[str, Any], value: float) -> None:
    for token in (0, 7, 29):
        logits = logits_of(30)
        logits[0, token] = value
        with pytest.raises(FloatingPointError, match="NaN or infinite"):
            sample(logits, [sampler_of(**params)], [[0]])


class SortCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the rows whose whole vocabulary is sorted."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.topk, torch.ops.aten.sort):
            whole = func.overloadpacket is torch.ops.aten.sort or args[1] == args[0].shape[-1]
            self.rows += args[0].shape[0] if whole else 0
        return func(*args, **(kwargs or {}))


def test_only_flat_rows_are_sorted_completely() -> None:
    logits = torch.cat([logits_of(5000, seed, spread) for seed, spread in enumerate((4.0, 0.01, 4.0, 0.01))])
    samplers = [sampler_of(top_p=0.9, seed=row) for row in range(4)]
    counter: Any = SortCounter()  # type: ignore[no-untyped-call]
    with counter:
        tokens = sample(logits, samplers, [[0]] * 4)
    assert counter.rows == 2
    assert tokens == [sample(logits[row : row + 1], [sampler_of(top_p=0.9, seed=row)], [[0]])[0] for row in range(4)]


def test_a_token_with_a_tiny_weight_can_be_drawn_and_one_without_weight_cannot() -> None:
    weights = torch.tensor([[0.0, 1e-9, 0.0, 1.0, 0.0]])
    indices = {
        number: int(sampling.draw(weights, [sampler_of(number)])[0]) for number in (0.0, 5e-10, 2e-9, 0.5, BELOW_1)
    }
    assert indices == {0.0: 1, 5e-10: 1, 2e-9: 3, 0.5: 3, BELOW_1: 3}
