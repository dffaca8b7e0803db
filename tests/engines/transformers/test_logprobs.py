"""Tests of log probabilities."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from aiochatstream import Delta, Engine, FunctionEngine, GenerationParams, RecordingEngine, ReplayEngine, ScriptedEngine
from aiochatstream.engines import TokenLogprob
from aiochatstream.engines.transformers import TransformersEngine, sampling, scheduler, sequential
from aiochatstream.engines.transformers.logprobs import logprobs_of
from aiochatstream.errors import InvalidValue
from tests.engines.transformers.engine_harness import deltas_of, load_engine, tokens_of
from tests.engines.transformers.tiny_models import question, some_ids, tiny
from tests.helpers import PATIENCE, echo
from tests.small_engine import SmallEngine


@pytest.fixture(scope="module")
def real_engine(small_engine: SmallEngine) -> TransformersEngine:
    return small_engine


def token_deltas_of(engine: TransformersEngine, ids: list[int], **params: Any) -> list[Delta]:
    """Return the deltas of an answer that contain tokens."""
    return [delta for delta in deltas_of(engine, ids, **{"max_new_tokens": 10} | params) if delta.token_ids]


def assert_logprobs_of_model(model: Any, ids: list[int], deltas: list[Delta], count: int) -> None:
    """Assert that logprobs are the log-softmax of the model's forward pass over prompt and answer."""
    tokens = tokens_of(deltas)
    logprobs = [logprob for delta in deltas for logprob in delta.logprobs]
    assert [logprob.token_id for logprob in logprobs] == tokens
    with torch.inference_mode():
        logits = model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
    expected = logits.float().log_softmax(-1)
    best = expected.topk(20).values
    for at, actual in enumerate(logprobs):
        top = [logprob for _, logprob in actual.top]
        assert actual.logprob == pytest.approx(float(expected[at, actual.token_id]), abs=1e-3)
        assert top == pytest.approx(best[at, :count].tolist(), abs=1e-3)
        assert [float(expected[at, token]) for token, _ in actual.top] == pytest.approx(top, abs=1e-3)


def test_logprobs_are_the_log_softmax_of_the_model_also_among_rows_without_logprobs(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any
) -> None:
    prompts = [question(tokenizer, text) for text in ("What is the sun?", "Say hello.", "Count from 1 to 9.")]
    params: list[dict[str, Any]] = [{"logprobs": 5}, {}, {"logprobs": 0, "temperature": 1.2, "seed": 3}]
    expected = token_deltas_of(real_engine, prompts[1])
    start = threading.Barrier(len(prompts))

    def request(at: int) -> list[Delta]:
        start.wait(PATIENCE)
        return token_deltas_of(real_engine, prompts[at], **params[at])

    with ThreadPoolExecutor(len(prompts)) as threads:
        with_top, without, with_own = threads.map(request, range(len(prompts)))
    assert_logprobs_of_model(untouched_model, prompts[0], with_top, 5)
    assert_logprobs_of_model(untouched_model, prompts[2], with_own, 0)
    assert not any(delta.logprobs for delta in without)
    assert tokens_of(without) == tokens_of(expected)


def test_logprobs_are_independent_of_the_sampling_parameters(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any
) -> None:
    ids = question(tokenizer, "Say yes.")
    params = {"logit_bias": {tokenizer.eos_token_id: -100}, "repetition_penalty": 1.5, "top_k": 3, "temperature": 0.7}
    assert_logprobs_of_model(untouched_model, ids, token_deltas_of(real_engine, ids, logprobs=20, **params), 20)


def test_logprobs_of_a_sequential_model_are_its_log_softmax() -> None:
    engine = load_engine(tiny("Mamba"), slots=1, context_len=64)
    ids = some_ids(12)
    assert_logprobs_of_model(tiny("Mamba"), ids, token_deltas_of(engine, ids, logprobs=4, ignore_eos=True), 4)
    engine.close()


def prompt_logprobs_of(engine: TransformersEngine, ids: list[int]) -> list[TokenLogprob]:
    """Return the logprobs of the prompt, and of the answer's only token."""
    deltas = deltas_of(engine, ids, logprobs=3, prompt_logprobs=True, max_new_tokens=1, ignore_eos=True)
    return [logprob for delta in deltas for logprob in delta.logprobs]


def assert_prompt_logprobs_of_model(model: Any, actual: list[TokenLogprob], ids: list[int]) -> None:
    """Assert that logprobs are the log-softmax of the model's forward pass, from the second prompt token on."""
    assert [logprob.token_id for logprob in actual[: len(ids)]] == ids
    assert len(actual) == len(ids) + 1
    assert actual[0] == TokenLogprob(ids[0], 0.0)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    best = expected.topk(3).values
    for at, logprob in enumerate(actual[1:]):
        assert logprob.logprob == pytest.approx(float(expected[at, logprob.token_id]), abs=1e-3)
        assert [value for _, value in logprob.top] == pytest.approx(best[at].tolist(), abs=1e-3)


def test_prompt_logprobs_are_the_log_softmax_of_the_model_also_with_a_cached_prefix(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any
) -> None:
    text = "The sun is a star, and so is Sirius. Paris is the capital of France: 2 + 2 = 4. " * 14
    long, short = tokenizer(text)["input_ids"][:300], tokenizer("One two three four five six")["input_ids"]
    assert len(long) == 300, "the prompt fits into one step"
    expected = token_deltas_of(real_engine, long)  # caches the prompt
    start = threading.Barrier(3)

    def request_logprobs(ids: list[int]) -> list[TokenLogprob]:
        start.wait(PATIENCE)
        return prompt_logprobs_of(real_engine, ids)

    def request_answer(ids: list[int]) -> list[Delta]:
        start.wait(PATIENCE)
        return token_deltas_of(real_engine, ids)

    with ThreadPoolExecutor(3) as threads:
        of_long, of_short = threads.submit(request_logprobs, long), threads.submit(request_logprobs, short)
        answer = threads.submit(request_answer, long)
    assert_prompt_logprobs_of_model(untouched_model, of_long.result(), long)
    assert_prompt_logprobs_of_model(untouched_model, of_short.result(), short)
    assert tokens_of(answer.result()) == tokens_of(expected)


@pytest.mark.parametrize("family", ["Llama", "Gemma 2", "Mamba", "BLOOM, with slopes for positions"])
@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_prompt_logprobs_are_computed_in_chunks(family: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MAX_SCORED_TOKENS", 16)
    monkeypatch.setattr(sequential, "PREFILL_TOKENS", 16)
    engine = load_engine(tiny(family), slots=1, context_len=64)
    ids = some_ids(length)
    assert_prompt_logprobs_of_model(tiny(family), prompt_logprobs_of(engine, ids), ids)
    engine.close()


def test_nan_logits_of_a_prompt_fail_only_its_own_answer() -> None:
    broken = tiny()
    with torch.no_grad():
        broken.get_input_embeddings().weight[7] = torch.nan
    engine = load_engine(broken, context_len=64)
    with pytest.raises(FloatingPointError):
        prompt_logprobs_of(engine, [*some_ids(6), 7, *some_ids(6)])
    assert_prompt_logprobs_of_model(tiny(), prompt_logprobs_of(engine, some_ids(12)), some_ids(12))
    engine.close()


def test_a_token_with_probability_0_has_a_finite_logprob() -> None:
    (logprob,) = logprobs_of(torch.tensor([[0.0, -torch.inf]]), [1], [2])
    assert (logprob.logprob, dict(logprob.top)) == (-9999.0, {0: 0.0, 1: -9999.0})


def test_an_error_in_logprobs_fails_only_the_answers_with_logprobs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise MemoryError

    engine = load_engine(tiny(), context_len=64)
    ids = some_ids(12)
    expected = tokens_of(token_deltas_of(engine, ids, ignore_eos=True))
    monkeypatch.setattr(sampling, "score_tokens", fail)
    start = threading.Barrier(2)

    def request(logprobs: int | None) -> list[Delta]:
        start.wait(PATIENCE)
        return token_deltas_of(engine, ids, logprobs=logprobs, ignore_eos=True)

    with ThreadPoolExecutor(2) as threads:
        failing, unaffected = threads.submit(request, 2), threads.submit(request, None)
        with pytest.raises(MemoryError):
            failing.result()
        assert tokens_of(unaffected.result()) == expected
    engine.close()


def test_engines_without_a_model_reject_logprobs(tmp_path: Path) -> None:
    engines: list[Engine] = [
        FunctionEngine(echo),
        ScriptedEngine(),
        RecordingEngine(ScriptedEngine(), tmp_path),
        ReplayEngine("x"),
    ]
    for engine in engines:
        engine.check(GenerationParams())
        with pytest.raises(InvalidValue, match=r"^logprobs: .+\.$"):
            engine.check(GenerationParams(logprobs=0))


@pytest.mark.parametrize("logprobs", [-1, 21, 1.5, True])
def test_invalid_numbers_of_logprobs_are_an_error(logprobs: Any) -> None:
    with pytest.raises(ValueError, match="logprobs"):
        GenerationParams(logprobs=logprobs)
