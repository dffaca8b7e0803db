"""Biases and penalties compared with transformers' own processors, and in whole answers with ``model.generate``."""

from __future__ import annotations

import copy
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
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

from aiochatstream import GenerationParams, Prompt
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.engines.transformers.logits import apply_penalties
from aiochatstream.engines.transformers.sampler import Sampler
from tests.engines.transformers.tiny_models import BYTES, reference, some_ids, tiny

VOCABULARY = 60


class CountPenalties(LogitsProcessor):  # type: ignore[misc]
    """As OpenAI defines them: https://platform.openai.com/docs/api-reference/chat/create"""

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
    """The same in transformers' words, and its order."""
    made = LogitsProcessorList()
    if "logit_bias" in params:
        made.append(
            SequenceBiasLogitsProcessor([[[token], float(bias)] for token, bias in params["logit_bias"].items()])
        )
    if params.get("repetition_penalty_method") == "subtractive":
        made.append(SubtractivePenalty(params.get("repetition_penalty", 1.0)))
    elif "repetition_penalty" in params:
        made.append(RepetitionPenaltyLogitsProcessor(params["repetition_penalty"]))
    if "no_repeat_ngram_size" in params:
        made.append(NoRepeatNGramLogitsProcessor(params["no_repeat_ngram_size"]))
    presence, frequency = params.get("presence_penalty", 0), params.get("frequency_penalty", 0)
    made.append(CountPenalties(prompt_length, presence, frequency))
    return made


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


def test_rows_of_all_kinds_together_are_changed_as_transformers_would_each() -> None:
    draw = random.Random(0)  # noqa: S311
    logits = torch.randn(len(ROWS), VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3
    before = logits.clone()
    samplers, seen, wanted = [], [], []
    for row, params in enumerate(ROWS):
        prompt, answer = ([draw.randrange(3) for _ in range(length)] for length in (5 + row, 2 * row))
        sampler = Sampler(GenerationParams(**params))
        for token in answer:
            sampler.advance(token)
        samplers.append(sampler)
        seen.append(prompt + answer)
        wanted.append(processors(params, len(prompt))(torch.tensor([seen[-1]]), logits[row : row + 1].clone())[0])
    found = apply_penalties(logits, samplers, seen)
    torch.testing.assert_close(found, torch.stack(wanted))
    assert torch.equal(logits, before), "the logits are someone else's"
    same = [row for row in range(len(ROWS)) if torch.equal(found[row], before[row])]
    assert [ROWS[row] for row in same] == [ROWS[0], ROWS[6], ROWS[10]]


def test_rows_without_any_are_passed_on_and_not_even_copied() -> None:
    logits = torch.randn(2, VOCABULARY)
    samplers = [Sampler(GenerationParams(temperature=0.3, top_p=0.5, min_p=0.1)) for _ in range(2)]
    assert apply_penalties(logits, samplers, [[1], [2]]) is logits


def test_counts_are_of_the_answer_alone() -> None:
    sampler = Sampler(GenerationParams(frequency_penalty=0.5))
    for token in (4, 4, 7):
        sampler.advance(token)
    assert sampler.counts == Counter({4: 2, 7: 1})
    found = apply_penalties(torch.zeros(1, VOCABULARY), [sampler], [[1, 4, 4, 4, 7]])[0]
    assert {token: float(found[token]) for token in found.nonzero()[:, 0].tolist()} == {4: -1.0, 7: -0.5}


ANSWERS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 2.0, "repetition_penalty_method": "subtractive"},
    {"no_repeat_ngram_size": 1},
    {"presence_penalty": 2.0},
    {"frequency_penalty": 1.0},
    {"logit_bias": {65: 3, 66: -100}, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "presence_penalty": 1.0},
]


@pytest.mark.parametrize("family", ["Qwen2", "Mamba"])  # rows together, and each on its own
def test_greedy_answers_with_penalties_made_together_are_those_of_generate(family: str) -> None:
    model = tiny(family)
    plain = copy.deepcopy(model)
    ids = some_ids(30)
    expected = [reference(plain, ids, 40, logits_processor=processors(params, len(ids))) for params in ANSWERS]
    assert all(one != reference(plain, ids, 40) for one in expected), "a parameter makes no difference here"
    engine = TransformersEngine(model, BYTES)
    engine.load(slots=len(ANSWERS), context_len=512)

    def answer(params: dict[str, Any]) -> list[int]:
        asked = GenerationParams(temperature=0, max_new_tokens=40, **params)
        return [token for delta in engine.generate(Prompt([], ids), asked) for token in delta.token_ids]

    with ThreadPoolExecutor(len(ANSWERS)) as threads:
        found = list(threads.map(answer, ANSWERS))
    engine.close()
    assert found == expected


@pytest.mark.parametrize("family", ["Qwen2", "Mamba"])
def test_a_bias_of_an_unknown_token_fails_its_own_answer_with_a_clear_sentence(family: str) -> None:
    engine = TransformersEngine(tiny(family), BYTES)
    engine.load(slots=1, context_len=64)
    assert engine.vocab_size == len(BYTES)
    for token, fails in ((len(BYTES) - 1, False), (len(BYTES), True)):
        asked = GenerationParams(temperature=0, max_new_tokens=2, logit_bias={token: 100})
        if fails:
            with pytest.raises(ValueError, match=f"^logit_bias: {token} is none of the model's {token} token ids"):
                list(engine.generate(Prompt([], some_ids(4)), asked))
        else:
            answer = [token for delta in engine.generate(Prompt([], some_ids(4)), asked) for token in delta.token_ids]
            assert answer == [token] * 2
    engine.close()
