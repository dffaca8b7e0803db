"""How likely the model itself found the tokens of an answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from aiochatstream import Delta, FunctionEngine, GenerationParams, Prompt, RecordingEngine, ReplayEngine, ScriptedEngine
from aiochatstream.engines import TokenLogprob
from aiochatstream.engines.transformers import TransformersEngine, batch, sequential
from aiochatstream.engines.transformers.logprobs import logprobs_of
from aiochatstream.errors import InvalidValue
from tests.engines.transformers.tiny_models import BYTES, question, some_ids, tiny
from tests.helpers import PATIENCE, echo


@pytest.fixture(scope="module")
def real_engine(model: Any, tokenizer: Any) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(model, tokenizer)
    engine.load(slots=3, context_len=512)
    yield engine
    engine.close()


def answer(engine: TransformersEngine, ids: list[int], **params: Any) -> list[Delta]:
    given = {"temperature": 0, "max_new_tokens": 10} | params
    return [delta for delta in engine.generate(Prompt([], ids), GenerationParams(**given)) if delta.token_ids]


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


def assert_of_the_model(model: Any, ids: list[int], deltas: list[Delta], count: int) -> None:
    """What the deltas tell is the log-softmax of the model's own forward pass over prompt and answer."""
    tokens = tokens_of(deltas)
    told = [logprob for delta in deltas for logprob in delta.logprobs]
    assert [one.token_id for one in told] == tokens
    with torch.inference_mode():
        logits = model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
    expected = logits.float().log_softmax(-1)
    best = expected.topk(20).values
    for at, one in enumerate(told):
        assert one.logprob == pytest.approx(float(expected[at, one.token_id]), abs=1e-3)
        assert [logprob for _, logprob in one.top] == pytest.approx(best[at, :count].tolist(), abs=1e-3)
        assert [float(expected[at, token]) for token, _ in one.top] == pytest.approx(
            [logprob for _, logprob in one.top], abs=1e-3
        )


def test_they_are_the_log_softmax_of_the_model_beside_rows_that_do_not_ask(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any
) -> None:
    prompts = [question(tokenizer, text) for text in ("What is the sun?", "Say hello.", "Count from 1 to 9.")]
    asked: list[dict[str, Any]] = [{"logprobs": 5}, {}, {"logprobs": 0, "temperature": 1.2, "seed": 3}]
    alone = answer(real_engine, prompts[1])
    begin = threading.Barrier(len(prompts))

    def ask(at: int) -> list[Delta]:
        begin.wait(PATIENCE)
        return answer(real_engine, prompts[at], **asked[at])

    with ThreadPoolExecutor(len(prompts)) as threads:
        best, silent, own = threads.map(ask, range(len(prompts)))
    assert_of_the_model(untouched_model, prompts[0], best, 5)
    assert_of_the_model(untouched_model, prompts[2], own, 0)
    assert not any(delta.logprobs for delta in silent)
    assert tokens_of(silent) == tokens_of(alone)


def test_they_are_of_the_models_distribution_whatever_is_done_to_draw_from_it(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any
) -> None:
    ids = question(tokenizer, "Say yes.")
    params = {"logit_bias": {tokenizer.eos_token_id: -100}, "repetition_penalty": 1.5, "top_k": 3, "temperature": 0.7}
    assert_of_the_model(untouched_model, ids, answer(real_engine, ids, logprobs=20, **params), 20)


def test_a_model_that_answers_alone_tells_them_too() -> None:
    engine = TransformersEngine(tiny("Mamba"), BYTES)
    engine.load(slots=1, context_len=64)
    ids = some_ids(12)
    assert_of_the_model(tiny("Mamba"), ids, answer(engine, ids, logprobs=4, ignore_eos=True), 4)
    engine.close()


def scored(engine: TransformersEngine, ids: list[int], logprobs: int = 3, **params: Any) -> list[TokenLogprob]:
    """Return the logprobs of the prompt, and those of the one token of the answer."""
    given = {"temperature": 0, "max_new_tokens": 1, "ignore_eos": True} | params
    told = GenerationParams(logprobs=logprobs, prompt_logprobs=True, **given)
    return [one for delta in engine.generate(Prompt([], ids), told) for one in delta.logprobs]


def assert_scores_of(model: Any, told: list[TokenLogprob], ids: list[int], count: int = 3) -> None:
    """They are the log-softmax of the model's own forward pass, of each token of the prompt but the first."""
    assert [one.token_id for one in told[: len(ids)]] == ids
    assert len(told) == len(ids) + 1
    assert told[0] == TokenLogprob(ids[0], 0.0)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    best = expected.topk(count).values
    for at, one in enumerate(told[1:]):
        assert one.logprob == pytest.approx(float(expected[at, one.token_id]), abs=1e-3)
        assert [logprob for _, logprob in one.top] == pytest.approx(best[at].tolist(), abs=1e-3)


def test_those_of_a_prompt_are_the_log_softmax_of_the_model_whatever_is_kept_or_read_beside(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any
) -> None:
    text = "The sun is a star, and so is Sirius. Paris is the capital of France: 2 + 2 = 4. " * 14
    long, short = tokenizer(text)["input_ids"][:300], tokenizer("One two three four five six")["input_ids"]
    assert len(long) == 300, "it is read in one step"
    plain = answer(real_engine, long)  # which is kept
    begin = threading.Barrier(3)

    def ask(ids: list[int], *, score: bool) -> Any:
        begin.wait(PATIENCE)
        return scored(real_engine, ids) if score else answer(real_engine, ids)

    with ThreadPoolExecutor(3) as threads:
        of_long, of_short, beside = threads.map(
            lambda asked: ask(asked[0], score=asked[1]), [(long, True), (short, True), (long, False)]
        )
    assert_scores_of(untouched_model, of_long, long)
    assert_scores_of(untouched_model, of_short, short)
    assert tokens_of(beside) == tokens_of(plain)


@pytest.mark.parametrize("family", ["Llama", "Gemma 2", "Mamba", "BLOOM, with slopes for positions"])
@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_those_of_a_prompt_are_found_in_pieces(family: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "SCORED_TOKENS", 16)
    monkeypatch.setattr(sequential, "PREFILL_TOKENS", 16)
    engine = TransformersEngine(tiny(family), BYTES)
    engine.load(slots=1, context_len=64)
    ids = some_ids(length)
    assert_scores_of(tiny(family), scored(engine, ids), ids)
    engine.close()


def test_a_prompt_whose_logits_are_no_numbers_fails_alone() -> None:
    broken = tiny()
    with torch.no_grad():
        broken.get_input_embeddings().weight[7] = torch.nan
    engine = TransformersEngine(broken, BYTES)
    engine.load(slots=2, context_len=64)
    with pytest.raises(FloatingPointError):
        scored(engine, [*some_ids(6), 7, *some_ids(6)])
    assert_scores_of(tiny(), scored(engine, some_ids(12)), some_ids(12))
    engine.close()


def test_a_token_of_no_probability_has_a_finite_logprob() -> None:
    (found,) = logprobs_of(torch.tensor([[0.0, -torch.inf]]), [1], [2])
    assert (found.logprob, dict(found.top)) == (-9999.0, {0: 0.0, 1: -9999.0})


def test_where_they_cannot_be_computed_only_the_answers_fail_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*given: Any) -> Any:
        raise MemoryError

    engine = TransformersEngine(tiny(), BYTES)
    engine.load(slots=2, context_len=64)
    ids = some_ids(12)
    expected = tokens_of(answer(engine, ids, ignore_eos=True))
    monkeypatch.setattr(batch, "logprobs_of", no_memory)
    begin = threading.Barrier(2)

    def ask(logprobs: int | None) -> list[Delta]:
        begin.wait(PATIENCE)
        return answer(engine, ids, logprobs=logprobs, ignore_eos=True)

    with ThreadPoolExecutor(2) as threads:
        failing, going_on = threads.submit(ask, 2), threads.submit(ask, None)
        with pytest.raises(MemoryError):
            failing.result()
        assert tokens_of(going_on.result()) == expected
    engine.close()


def test_engines_without_a_model_refuse_to_tell_them_by_name(tmp_path: Any) -> None:
    engines = [FunctionEngine(echo), ScriptedEngine(), RecordingEngine(ScriptedEngine(), tmp_path), ReplayEngine("x")]
    for engine in engines:
        engine.check(GenerationParams())
        with pytest.raises(InvalidValue, match=r"^logprobs: .+\.$"):
            engine.check(GenerationParams(logprobs=0))


@pytest.mark.parametrize("logprobs", [-1, 21, 1.5, True])
def test_more_than_20_or_what_is_no_number_is_refused(logprobs: Any) -> None:
    with pytest.raises(ValueError, match="logprobs"):
        GenerationParams(logprobs=logprobs)
