"""Tests of biases and penalties, compared with transformers' processors and with ``model.generate``."""

from __future__ import annotations

import copy
import random
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from aiochatstream import GenerationParams
from aiochatstream.engines.transformers.logits import apply_penalties
from aiochatstream.engines.transformers.sampler import Sampler
from tests.engines.transformers.engine_harness import answer, concurrent_deltas, load_engine, tokens_of
from tests.engines.transformers.tiny_models import BYTES, reference, some_ids, tiny

VOCABULARY = 60


class CountPenalties(LogitsProcessor):  # type: ignore[misc]
    """Penalties as defined by OpenAI: https://platform.openai.com/docs/api-reference/chat/create"""

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self.prompt_length, self.presence, self.frequency = prompt_length, presence, frequency

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, self.prompt_length :], minlength=scores.shape[-1])
        return scores - counts * self.frequency - (counts > 0) * self.presence


class SubtractivePenalty(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, penalty: float) -> None:
        self.penalty = penalty

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores - torch.zeros_like(scores).scatter(1, input_ids, self.penalty)


def processors(params: dict[str, Any], prompt_length: int) -> LogitsProcessorList:
    """Return transformers' processors for ``params``, in its order."""
    processors = LogitsProcessorList()
    if "logit_bias" in params:
        processors.append(
            SequenceBiasLogitsProcessor([[[token], float(bias)] for token, bias in params["logit_bias"].items()])
        )
    if params.get("repetition_penalty_method") == "subtractive":
        processors.append(SubtractivePenalty(params.get("repetition_penalty", 1.0)))
    elif "repetition_penalty" in params:
        processors.append(RepetitionPenaltyLogitsProcessor(params["repetition_penalty"]))
    if "no_repeat_ngram_size" in params:
        processors.append(NoRepeatNGramLogitsProcessor(params["no_repeat_ngram_size"]))
    presence, frequency = params.get("presence_penalty", 0), params.get("frequency_penalty", 0)
    processors.append(CountPenalties(prompt_length, presence, frequency))
    return processors


ROWS: list[dict[str, Any]] = [
    {},
    {"logit_bias": {3: 2.5, 59: -100, 0: 100}},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.3},
    {"repetition_penalty": 1.7, "repetition_penalty_method": "subtractive"},
    {"repetition_penalty_method": "subtractive"},
    {"repetition_penalty": 0.0, "repetition_penalty_method": "subtractive"},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"no_repeat_ngram_size": 100},
    {"presence_penalty": 1.5},
    {"presence_penalty": -2.0},
    {"frequency_penalty": 0.8},
    {"presence_penalty": 0.7, "frequency_penalty": -0.4},
    {
        "logit_bias": {1: 5, 2: -5},
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
    },
    {"logit_bias": {1: 5}, "repetition_penalty": 2.0, "repetition_penalty_method": "subtractive"},
]


def test_penalties_of_all_rows_equal_those_of_transformers_for_each_row() -> None:
    generator = random.Random(0)  # noqa: S311
    logits = torch.randn(len(ROWS), VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3
    before = logits.clone()
    samplers, seen, expected = [], [], []
    for row, params in enumerate(ROWS):
        prompt, answer = ([generator.randrange(3) for _ in range(length)] for length in (5 + row, 2 * row))
        sampler = Sampler(GenerationParams(**params))
        for token in answer:
            sampler.advance(token)
        samplers.append(sampler)
        seen.append(prompt + answer)
        expected.append(processors(params, len(prompt))(torch.tensor([seen[-1]]), logits[row : row + 1].clone())[0])
    actual = apply_penalties(logits, samplers, seen)
    torch.testing.assert_close(actual, torch.stack(expected))
    assert torch.equal(logits, before), "the input was modified"
    unchanged = [row for row in range(len(ROWS)) if torch.equal(actual[row], before[row])]
    assert [ROWS[row] for row in unchanged] == [ROWS[0], ROWS[6], ROWS[10]]


def test_logits_without_penalties_are_not_copied() -> None:
    logits = torch.randn(2, VOCABULARY)
    samplers = [Sampler(GenerationParams(temperature=0.3, top_p=0.5, min_p=0.1)) for _ in range(2)]
    assert apply_penalties(logits, samplers, [[1], [2]]) is logits


def test_count_penalties_count_only_the_answer() -> None:
    sampler = Sampler(GenerationParams(frequency_penalty=0.5))
    for token in (4, 4, 7):
        sampler.advance(token)
    assert sampler.counts == Counter({4: 2, 7: 1})
    actual = apply_penalties(torch.zeros(1, VOCABULARY), [sampler], [[1, 4, 4, 4, 7]])[0]
    assert {token: float(actual[token]) for token in actual.nonzero()[:, 0].tolist()} == {4: -1.0, 7: -0.5}


ANSWERS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 2.0, "repetition_penalty_method": "subtractive"},
    {"no_repeat_ngram_size": 1},
    {"presence_penalty": 2.0},
    {"frequency_penalty": 1.0},
    {"logit_bias": {65: 3, 66: -100}, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "presence_penalty": 1.0},
]


@pytest.mark.parametrize("family", ["Qwen2", "Mamba"])  # batched and sequential
def test_concurrent_greedy_answers_with_penalties_are_those_of_generate(family: str) -> None:
    model = tiny(family)
    plain = copy.deepcopy(model)
    ids = some_ids(30)
    expected = [reference(plain, ids, 40, logits_processor=processors(params, len(ids))) for params in ANSWERS]
    assert all(tokens != reference(plain, ids, 40) for tokens in expected), "a parameter has no effect"
    engine = load_engine(model, slots=len(ANSWERS), context_len=512)
    answers = concurrent_deltas(engine, [(ids, {"max_new_tokens": 40, **params}) for params in ANSWERS])
    engine.close()
    assert [tokens_of(deltas) for deltas in answers] == expected


@pytest.mark.parametrize("family", ["Qwen2", "Mamba"])
def test_a_bias_of_a_token_out_of_range_is_an_error(family: str) -> None:
    engine = load_engine(tiny(family), slots=1, context_len=64)
    assert engine.vocab_size == len(BYTES)
    last = len(BYTES) - 1
    assert answer(engine, some_ids(4), max_new_tokens=2, logit_bias={last: 100}) == [last] * 2
    with pytest.raises(ValueError, match=f"^logit_bias: token id {last + 1} is out of range; the vocabulary has"):
        answer(engine, some_ids(4), max_new_tokens=2, logit_bias={last + 1: 100})
    engine.close()
