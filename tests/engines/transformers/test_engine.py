"""Tests of answers from models: a small trained model and tiny ones of several families with random weights."""

from __future__ import annotations

import copy
import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from aiochatstream import Delta, GenerationParams, Prompt
from aiochatstream.engines.stop_strings import StopStrings
from aiochatstream.engines.token_sampler import TokenSampler
from aiochatstream.engines.transformers import TransformersEngine, answer_deltas, sampling, scheduler
from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.engines.transformers.cpu import dtype_trial
from aiochatstream.engines.transformers.cpu.packed_linear import PackedLinear
from aiochatstream.engines.transformers.engine import is_on
from aiochatstream.engines.transformers.scheduler import PREFILL_BUDGET
from tests.engines.tokenizers import BYTE_FALLBACK
from tests.engines.transformers.engine_harness import (
    answer,
    concurrent_answers,
    deltas_of,
    load_engine,
    text_of,
    tokens_of,
)
from tests.engines.transformers.tiny_models import (
    ATTENTION,
    BATCHED,
    BYTES,
    SEQUENTIAL,
    assert_same,
    question,
    reference,
    some_ids,
    tiny,
)
from tests.helpers import PATIENCE
from tests.processes import PYTHON, finish
from tests.small_engine import SmallEngine

MAX_CHUNK = PREFILL_BUDGET[1]
"""Maximum number of tokens in a chunk of a prompt."""


@pytest.fixture(scope="module")
def tiny_engine() -> Iterator[TransformersEngine]:
    engine = load_engine(tiny(), prefix_cache_bytes=0)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def real_engine(small_engine: SmallEngine) -> TransformersEngine:
    return small_engine


@pytest.mark.parametrize("text", ["What is the capital of France?", "こんにちは", "Count from 1 to 9."])
def test_greedy_answers_of_a_trained_model_are_those_of_generate(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any, text: str
) -> None:
    ids = question(tokenizer, text)
    deltas = deltas_of(real_engine, ids, max_new_tokens=12)
    expected = reference(untouched_model, ids, 12)
    assert tokens_of(deltas) == expected
    assert text_of(deltas) == tokenizer.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
    assert deltas[-1].finish_reason == ("stop" if expected[-1] == tokenizer.eos_token_id else "length")


def test_answers_with_a_repetition_penalty_are_those_of_generate(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any
) -> None:
    ids = question(tokenizer, "Say one, one, one.")
    expected = reference(untouched_model, ids, 12, repetition_penalty=1.3)
    assert expected != reference(untouched_model, ids, 12)
    assert answer(real_engine, ids, max_new_tokens=12, repetition_penalty=1.3) == expected


def test_answers_to_a_long_prompt_are_those_of_generate(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any
) -> None:
    ids = question(tokenizer, "Which number is missing? " + " ".join(str(n) for n in range(100) if n != 77))
    assert len(ids) > 256
    deltas = deltas_of(real_engine, ids, max_new_tokens=8)
    assert tokens_of(deltas) == reference(untouched_model, ids, 8)


PROMPT_LENGTHS = [5, 70, 600]
"""Below and above the sliding window and the maximum chunk."""


@pytest.mark.parametrize("family", BATCHED)
def test_concurrent_and_repeated_answers_of_every_family_are_those_of_generate(family: str) -> None:
    model = tiny(family)
    plain = copy.deepcopy(model)
    prompts = [some_ids(length, seed) for seed, length in enumerate(PROMPT_LENGTHS)]
    expected = [reference(plain, ids, 16) for ids in prompts]
    assert all(len(set(ids)) > 3 for ids in expected), "the answers of this model are too uniform"
    engine = load_engine(model, slots=3)
    assert engine.batch_obstacle is None
    for _ in range(2):  # the second time with cached prefixes
        answers = concurrent_answers(engine, prompts, max_new_tokens=16, ignore_eos=True)
        for ids, actual, generated in zip(prompts, answers, expected, strict=True):
            assert_same(plain, ids, actual, generated)
    assert engine.metrics()["prefix_cache_hits_total"] >= (3 if family in ATTENTION else 0)
    engine.close()


@pytest.mark.parametrize("family", ["GPT-OSS, with sinks", "LFM2"])
def test_a_model_is_restored_by_close_and_can_be_loaded_again(family: str) -> None:
    model, plain = tiny(family), tiny(family)
    expected = reference(plain, some_ids(9), 8)
    for _ in range(2):
        engine = load_engine(model, optimize=False)
        assert engine.batch_obstacle is None
        assert_same(
            plain, some_ids(9), tokens_of(deltas_of(engine, some_ids(9), max_new_tokens=8, ignore_eos=True)), expected
        )
        engine.close()
        assert model.config._attn_implementation == plain.config._attn_implementation
        assert not any("forward" in vars(module) for module in model.modules())
        assert reference(model, some_ids(9), 8) == expected


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_models_that_cannot_be_batched_decode_sequentially_and_log_a_warning(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(family)
    plain = copy.deepcopy(model)
    prompts = [some_ids(5), some_ids(300, 1)]
    expected = [reference(plain, ids, 12) for ids in prompts]
    with caplog.at_level(logging.WARNING, "aiochatstream"):
        engine = load_engine(model)
    assert f"{type(model).__name__} cannot be batched (" in caplog.text
    assert model.config._attn_implementation == plain.config._attn_implementation
    assert all(torch.equal(*weights) for weights in zip(model.parameters(), plain.parameters(), strict=True))
    answers = concurrent_answers(engine, prompts, max_new_tokens=12)
    for ids, actual, generated in zip(prompts, answers, expected, strict=True):
        assert_same(plain, ids, actual, generated)
    engine.close()


def test_a_dtype_that_is_slow_on_the_cpu_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds, slow in (3.0, True), (0.5, False):
        times = {torch.float32: 1.0, torch.bfloat16: seconds}
        monkeypatch.setattr(dtype_trial, "answer_seconds", lambda shapes, dtype, times=times: times[dtype])
        caplog.clear()
        load_engine(tiny().to(torch.bfloat16)).close()
        assert ("bfloat16 is slow on this CPU" in caplog.text) is slow
    caplog.clear()
    load_engine(tiny()).close()
    assert "is slow" not in caplog.text


def test_a_model_with_another_signature_of_forward_decodes_sequentially(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    expected = reference(copy.deepcopy(model), some_ids(9))
    plain_forward = model.forward

    def forward(input_ids: Any, past_key_values: Any = None, use_cache: Any = None) -> Any:
        return plain_forward(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)

    model.forward = forward
    engine = load_engine(model)
    assert "cannot be batched" in caplog.text
    assert answer(engine, some_ids(9)) == expected


def test_concurrent_answers_of_a_trained_model_are_those_of_generate(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any
) -> None:
    """More requests than rows, so that they join and leave while others run; two have a common prefix."""
    texts = ["Name a colour.", "Name a colour and a tree.", "Was ist eine Katze?", "Count from 1 to 9."]
    prompts = [question(tokenizer, text) for text in texts]
    answers = concurrent_answers(real_engine, prompts, max_new_tokens=7, ignore_eos=True)
    for ids, actual in zip(prompts, answers, strict=True):
        assert_same(untouched_model, ids, actual, reference(untouched_model, ids, 7, eos_token_id=-1))


@pytest.fixture(scope="module", params=["Llama", "Gemma 3"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[TransformersEngine, Any]]:
    """An engine with a small prefix cache, and a copy of its model."""
    model = tiny(request.param)
    plain = copy.deepcopy(model)
    engine = load_engine(model, slots=3, prefix_cache_bytes=1_000_000)
    yield engine, plain
    assert 0 < engine.metrics()["prefix_cache_bytes"] <= 1_000_000
    engine.close()


request_plans = st.tuples(st.integers(0, 2), st.integers(1, 150), st.integers(1, 8), st.none() | st.integers(0, 7))
"""Seed and length of the prompt, max_new_tokens, and the number of tokens after which the client disconnects."""


@settings(max_examples=8, deadline=None)
@given(st.lists(request_plans, min_size=2, max_size=7))
def test_answers_are_those_of_generate_for_any_concurrent_requests(
    pair: tuple[TransformersEngine, Any], plan: list[tuple[int, int, int, int | None]]
) -> None:
    engine, plain = pair

    def request(seed: int, length: int, count: int, disconnect_after: int | None) -> list[int]:
        params = GenerationParams(temperature=0, max_new_tokens=count, ignore_eos=True)
        tokens: list[int] = []
        with closing(engine.generate(Prompt([], some_ids(length, seed)), params)) as steps:
            for delta in steps:
                tokens += delta.token_ids
                if disconnect_after is not None and len(tokens) >= disconnect_after:
                    break
        return tokens

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(3) as threads:
        patch.setattr(scheduler, "PREFILL_BUDGET", (16, 16))
        answers = [threads.submit(request, *planned) for planned in plan]
        wait(answers)
    for (seed, length, count, disconnect_after), running in zip(plan, answers, strict=True):
        tokens = running.result()
        expected_count = count if disconnect_after is None else min(count, max(1, disconnect_after))
        assert len(tokens) == expected_count or (disconnect_after == 0 and not tokens)
        ids = some_ids(length, seed)
        assert_same(plain, ids, tokens, reference(plain, ids, count)[: len(tokens)])


def test_an_error_in_stop_strings_fails_only_its_own_answer(
    tiny_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(tiny_engine, some_ids(9))

    class FailingStopStrings(StopStrings):
        def __init__(self, stops: tuple[str, ...]) -> None:
            super().__init__(stops)
            self.fails = bool(stops)

        def push(self, text: str) -> tuple[str, bool]:
            if self.fails:
                raise ZeroDivisionError
            return super().push(text)

    monkeypatch.setattr(answer_deltas, "StopStrings", FailingStopStrings)
    other = tiny_engine.generate(Prompt([], some_ids(9)), GenerationParams(temperature=0, max_new_tokens=24))
    first = next(other)
    with pytest.raises(ZeroDivisionError):
        answer(tiny_engine, some_ids(9), stop=("never",))
    assert tokens_of([first, *other]) == expected


def test_optimize_replaces_linear_layers_without_changing_answers() -> None:
    models = [tiny(), tiny()]
    plain = copy.deepcopy(models[0])
    engines = [load_engine(model, optimize=optimize) for model, optimize in zip(models, (False, True), strict=True)]
    state = models[0].state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(weight, state[name]) for name, weight in plain.state_dict().items())
    assert not any(isinstance(module, PackedLinear) for module in models[0].modules())
    assert any(isinstance(module, PackedLinear) for module in models[1].modules())
    expected = reference(plain, some_ids(40))
    for engine, model in zip(engines, models, strict=True):
        assert answer(engine, some_ids(40)) == expected
        assert reference(model, some_ids(40)) == expected  # the application can still use the model
        engine.close()


@pytest.mark.parametrize(("length", "chunks"), [(1, 1), (MAX_CHUNK, 1), (MAX_CHUNK + 1, 2), (2 * MAX_CHUNK + 5, 3)])
def test_each_chunk_of_a_prompt_yields_a_delta(tiny_engine: TransformersEngine, length: int, chunks: int) -> None:
    deltas = deltas_of(tiny_engine, some_ids(length), max_new_tokens=2, ignore_eos=True)
    assert deltas[: chunks - 1] == [Delta()] * (chunks - 1)
    assert [len(delta.token_ids) for delta in deltas[chunks - 1 :]] == [1, 1]


def test_each_forward_pass_is_reported() -> None:
    steps: list[str] = []
    engine = TransformersEngine(tiny(), BYTES)
    engine.on_step = lambda kind, seconds: steps.append(kind)
    engine.load(slots=1, context_len=2048)
    deltas_of(engine, some_ids(MAX_CHUNK + 5), max_new_tokens=3, ignore_eos=True)
    engine.close()
    warm_up, last = steps[:-4], steps[-4:]
    assert warm_up == ["prefill", *["decode"] * (len(warm_up) - 1)]
    assert last == ["prefill", "prefill", "decode", "decode"]


@pytest.mark.parametrize("share", [True, False])
def test_users_share_cached_prefixes_only_with_share_prefixes(share: bool) -> None:
    engine = load_engine(tiny(), share_prefixes=share)
    params = GenerationParams(temperature=0, max_new_tokens=4, ignore_eos=True)

    def cached_tokens(owner: str) -> int:
        return sum(delta.cached_tokens for delta in engine.generate(Prompt([], some_ids(50), owner=owner), params))

    counts = [cached_tokens(owner) for owner in ("anna", "bob", "anna", "bob")]
    engine.close()
    assert counts == ([0, 49, 49, 49] if share else [0, 0, 49, 49])


def test_cached_tokens_count_the_reused_prompt_tokens() -> None:
    engine = load_engine(tiny())
    ids = some_ids(50)
    first = deltas_of(engine, ids, max_new_tokens=8, ignore_eos=True)
    tokens = tokens_of(first)
    repeated = deltas_of(engine, ids, max_new_tokens=8, ignore_eos=True)
    following = deltas_of(engine, ids + tokens + some_ids(9, 1), max_new_tokens=1, ignore_eos=True)
    engine.close()
    assert [delta.cached_tokens for delta in first] == [0] * 8
    assert [delta.cached_tokens for delta in repeated if delta.cached_tokens] == [49]
    assert [delta.cached_tokens for delta in following if delta.cached_tokens] == [50 + 8 - 1]
    assert tokens_of(repeated) == tokens


def test_prompt_and_answer_may_fill_the_context_exactly(tiny_engine: TransformersEngine) -> None:
    assert tiny_engine.max_context_len == 2048
    assert len(answer(tiny_engine, some_ids(2045), max_new_tokens=3, ignore_eos=True)) == 3
    assert len(answer(tiny_engine, some_ids(2047), max_new_tokens=1, ignore_eos=True)) == 1


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "prompt is empty"),
        ([3] * 2048, "do not fit into the context of 2048"),
        ([5, 384], "Token id 384 is out of range; the vocabulary has 384"),
    ],
    ids=["empty", "too long", "unknown token"],
)
def test_an_invalid_prompt_fails_only_its_own_answer(
    tiny_engine: TransformersEngine, ids: list[int], message: str
) -> None:
    other = tiny_engine.generate(Prompt([], some_ids(9)), GenerationParams(temperature=0, max_new_tokens=24))
    first = next(other)
    with pytest.raises(ValueError, match=message):
        answer(tiny_engine, ids)
    assert tokens_of([first, *other]) == answer(tiny_engine, some_ids(9))


@pytest.mark.parametrize("context_len", [1, 2, 8, 41])
def test_a_short_context_can_be_filled(context_len: int) -> None:
    engine = TransformersEngine(tiny(), BYTES)
    engine.load(slots=2, context_len=context_len)
    assert len(answer(engine, some_ids(context_len), max_new_tokens=1, ignore_eos=True)) == 1
    engine.close()


def test_a_window_that_the_attention_does_not_pass_on_is_detected(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("Qwen2")  # its layers have no window
    model.config.sliding_window, model.config.use_sliding_window = 500, True
    model.config.layer_types, model.model.has_sliding_layers = ["sliding_attention"] * 6, True
    engine = load_engine(model)
    assert "does not pass on its window" in caplog.text
    engine.close()


def test_a_small_kv_cache_shortens_the_context_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    token_bytes = 6 * 2 * 16 * 4  # layers, keys and values, head size, float32
    engine = load_engine(tiny(), kv_cache_bytes=100 * token_bytes + 5, prefix_cache_bytes=0)
    assert engine.max_context_len == engine.kv_cache_tokens == 96, "whole blocks, and as many for 2 slots as for 1"
    assert "limits the context to 96 tokens instead of 2048" in caplog.text
    metrics = engine.metrics()
    assert metrics["kv_cache_bytes"] == 96 * token_bytes
    assert len(answer(engine, some_ids(86), max_new_tokens=11, ignore_eos=True)) == 11
    assert engine.metrics()["kv_cache_bytes"] == metrics["kv_cache_bytes"]
    engine.close()
    assert engine.metrics() == {}
    with pytest.raises(ValueError, match=f"^kv_cache_bytes: must be at least {16 * token_bytes} for 16 tokens, not "):
        load_engine(tiny(), kv_cache_bytes=7 * token_bytes)


@pytest.mark.parametrize(("family", "limited"), [("Qwen2", 96), ("Llama 4, with chunks", 100)])
def test_without_a_context_length_the_models_own_limit_applies_as_far_as_the_memory_allows(
    family: str, limited: int
) -> None:
    token_bytes = 6 * 2 * 16 * 4
    for options, expected in (({}, 2048), ({"kv_cache_bytes": 100 * token_bytes}, limited)):
        engine = load_engine(tiny(family), context_len=None, prefix_cache_bytes=0, **options)
        assert engine.max_context_len == expected
        assert len(answer(engine, some_ids(expected - 2), max_new_tokens=2, ignore_eos=True)) == 2
        engine.close()


def test_a_model_without_a_limit_has_the_default_context() -> None:
    model = tiny("BLOOM, with slopes for positions")
    del model.config.max_position_embeddings
    engine = load_engine(model, context_len=None, kv_cache_bytes=1 << 30)
    assert engine.max_context_len is None
    engine.close()


@pytest.mark.parametrize(
    "options", [{"kv_cache_bytes": 0}, {"prefix_cache_bytes": -1}, {"max_step_ms": 0}, {"max_step_ms": float("nan")}]
)
def test_invalid_options_are_an_error_that_names_them(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(options))}: "):
        TransformersEngine(tiny(), BYTES, **options)


def decode_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "aiochatstream-decode"}


def test_close_ends_the_thread_and_running_answers_and_can_be_repeated() -> None:
    before = decode_threads()
    TransformersEngine(tiny(), BYTES).close()  # not loaded
    engine = load_engine(tiny())
    steps = engine.generate(Prompt([], some_ids(5)), GenerationParams(max_new_tokens=1000, ignore_eos=True))
    next(steps)
    engine.close()
    assert decode_threads() == before
    with pytest.raises(RuntimeError, match="closed"):
        list(steps)
    with pytest.raises(RuntimeError, match="not loaded"):
        answer(engine, some_ids(5))
    engine.close()


def test_close_ends_the_thread_after_a_failed_load() -> None:
    def fail(kind: str, seconds: float) -> None:
        raise ZeroDivisionError("in the first step")

    before = decode_threads()
    engine = TransformersEngine(tiny(), BYTES)
    engine.on_step = fail
    with pytest.raises(RuntimeError, match="in the first step"):
        engine.load(slots=1, context_len=64)
    engine.close()
    assert decode_threads() == before


def test_an_unreferenced_engine_ends_its_thread_and_frees_its_memory() -> None:
    before = decode_threads()
    engine = load_engine(tiny())
    assert isinstance(engine.decoder, Batch)
    cache = weakref.ref(engine.decoder.kv_cache)
    answer(engine, some_ids(5))
    del engine
    gc.collect()
    assert decode_threads() == before
    assert cache() is None


PROGRAM = """
import torch
from aiochatstream import GenerationParams, Prompt
from aiochatstream.engines.transformers import TransformersEngine
from tests.engines.transformers.tiny_models import BYTES, tiny
torch.set_num_threads(1)
idle, busy = (TransformersEngine(tiny(), BYTES) for _ in range(2))
for engine in (idle, busy):
    engine.load(slots=2, context_len=2048)
steps = busy.generate(Prompt([], [5, 6]), GenerationParams(max_new_tokens=2000, ignore_eos=True))
next(steps)
print("end")
"""


def test_a_program_that_does_not_close_its_engines_exits_without_errors() -> None:
    result = finish([PYTHON, "-c", PROGRAM], forked=True)
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr
    assert "terminate called" not in result.stderr
    assert "Traceback" not in result.stderr


def test_answers_with_the_same_seed_are_equal_and_others_differ(tiny_engine: TransformersEngine) -> None:
    ids = some_ids(20)
    first, second, other = (answer(tiny_engine, ids, temperature=1.5, seed=seed) for seed in (7, 7, 8))
    assert first == second
    assert first != other


def test_an_answer_with_a_seed_is_independent_of_concurrent_answers(tiny_engine: TransformersEngine) -> None:
    options: dict[str, Any] = {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.1, "max_new_tokens": 20}
    expected = answer(tiny_engine, some_ids(20), seed=7, **options)
    other_params = [
        GenerationParams(max_new_tokens=60, temperature=0.0),
        GenerationParams(max_new_tokens=60, top_k=3, seed=7),
        GenerationParams(max_new_tokens=60, temperature=2.0, seed=7),
    ]
    for params in other_params:
        other = tiny_engine.generate(Prompt([], some_ids(30)), params)
        next(other)
        assert answer(tiny_engine, some_ids(20), seed=7, **options) == expected
        other.close()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_top_k_1_is_greedy(tiny_engine: TransformersEngine, seed: int) -> None:
    ids = some_ids(20)
    assert answer(tiny_engine, ids, temperature=1.5, top_k=1, seed=seed) == answer(tiny_engine, ids)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 5e-324},
        {"temperature": 1e-40, "top_k": 5, "top_p": 0.5},
        {"temperature": 2.0},
        {"temperature": 1.0, "top_k": 1000},
        {"temperature": 1.0, "top_p": 5e-324},
        {"temperature": 1.0, "repetition_penalty": 0.01},
        {"temperature": 1.0, "repetition_penalty": 10.0},
        {"temperature": 1.0, "seed": 2**63 - 1},
    ],
    ids=str,
)
def test_extreme_parameters_give_an_answer(tiny_engine: TransformersEngine, params: dict[str, Any]) -> None:
    assert len(answer(tiny_engine, some_ids(20), max_new_tokens=4, ignore_eos=True, **params)) == 4


@pytest.mark.parametrize("place", ["generation config, int", "generation config, list", "model config", "tokenizer"])
def test_an_end_of_sequence_id_of_any_configuration_ends_the_answer(place: str) -> None:
    model, tokenizer, ids = tiny(), ByT5Tokenizer(), some_ids(20)
    whole = answer(load_engine(model), ids, max_new_tokens=20, ignore_eos=True)
    end = whole[4]
    expected = whole[: whole.index(end) + 1]
    if place == "tokenizer":
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    elif place == "model config":
        model.config.eos_token_id = end
    else:
        model.generation_config.eos_token_id = [300, end] if place.endswith("list") else end
    engine = load_engine(model, tokenizer)
    deltas = deltas_of(engine, ids, max_new_tokens=20)
    assert tokens_of(deltas) == expected
    assert deltas[-1].finish_reason == "stop"

    ignoring = deltas_of(engine, ids, max_new_tokens=20, ignore_eos=True)
    assert tokens_of(ignoring) == whole
    assert [delta.finish_reason for delta in ignoring if delta.finish_reason] == ["length"]


def test_a_stop_string_that_is_a_special_token_ends_the_answer() -> None:
    model, tokenizer = tiny(), ByT5Tokenizer()
    ids = some_ids(9)
    whole = reference(model, ids, 20)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    end = whole[6]
    tokenizer._added_tokens_decoder[end] = tokenizer.added_tokens_decoder[tokenizer.convert_tokens_to_ids("<|im_end|>")]
    engine = load_engine(model, tokenizer)
    expected = whole[: whole.index(end) + 1]
    deltas = deltas_of(engine, ids, max_new_tokens=20, stop=("never", "<|im_end|>"), ignore_eos=True)
    assert tokens_of(deltas) == expected
    assert deltas[-1].finish_reason == "stop"
    engine.close()


@pytest.fixture(scope="module")
def counted(real_engine: TransformersEngine, tokenizer: Any) -> tuple[list[int], list[Delta]]:
    """A prompt, and the deltas of its answer of 12 tokens."""
    ids = question(tokenizer, "Count from 1 to 9.")
    return ids, deltas_of(real_engine, ids, max_new_tokens=12)


def test_a_stop_string_that_is_split_over_tokens_ends_the_answer_and_is_not_part_of_it(
    real_engine: TransformersEngine, counted: tuple[list[int], list[Delta]]
) -> None:
    ids, deltas = counted
    texts = [delta.text for delta in deltas if delta.text]
    stop = texts[4][-1] + texts[5] + texts[6][0]
    text = "".join(texts)
    stopped = deltas_of(real_engine, ids, max_new_tokens=12, stop=(stop,))
    assert text_of(stopped) == text[: text.index(stop)]
    assert stopped[-1].finish_reason == "stop"
    assert len(stopped) < len(deltas)


def test_pending_text_is_returned_at_the_end_of_the_answer(
    real_engine: TransformersEngine, counted: tuple[list[int], list[Delta]]
) -> None:
    ids, deltas = counted
    text = text_of(deltas)
    limited = deltas_of(real_engine, ids, max_new_tokens=12, stop=(text[-2:] + "###",))
    assert limited[-1].finish_reason == "length"
    assert text_of(limited) == text


def test_concurrent_answers_that_are_read_in_step_are_those_of_separate_requests(
    real_engine: TransformersEngine, tokenizer: Any
) -> None:
    prompts = [question(tokenizer, text) for text in ("Name a colour.", "Was ist eine Katze?")]
    expected = [answer(real_engine, ids, max_new_tokens=8) for ids in prompts]
    barrier = threading.Barrier(2)

    def read_in_step(ids: list[int]) -> list[int]:
        tokens: list[int] = []
        for delta in real_engine.generate(Prompt([], ids), GenerationParams(temperature=0, max_new_tokens=8)):
            barrier.wait(PATIENCE)
            tokens += delta.token_ids
        return tokens

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(read_in_step, prompts)) == expected


def test_a_continued_answer_equals_the_uninterrupted_one(real_engine: TransformersEngine, tokenizer: Any) -> None:
    ids = question(tokenizer, "Count from 1 to 9.")
    whole = deltas_of(real_engine, ids, max_new_tokens=16)
    tokens = tokens_of(whole)
    start = tokenizer.decode(tokens[:7])
    prompt = Prompt([], ids + tokens[:7], continued=True)
    # a stop string in the existing text has no effect
    params = GenerationParams(temperature=0, max_new_tokens=9, stop=(start,))
    rest = list(real_engine.generate(prompt, params))
    assert tokens_of(rest) == tokens[7:]
    assert start + text_of(rest) == text_of(whole)
    assert sum(delta.cached_tokens for delta in rest) >= len(ids)


@pytest.mark.parametrize(("continued", "text"), [(False, " "), (True, "  ")])
def test_the_first_space_is_removed_only_at_the_start_of_a_text(continued: bool, text: str) -> None:
    engine = load_engine(tiny(), BYTE_FALLBACK)
    space = BYTE_FALLBACK.convert_tokens_to_ids("▁")
    params = GenerationParams(logit_bias={space: 100}, max_new_tokens=2, temperature=0)
    assert text_of(list(engine.generate(Prompt([], BYTE_FALLBACK("ab")["input_ids"], continued), params))) == text
    engine.close()


def test_an_incomplete_character_at_the_end_is_a_replacement_character() -> None:
    tokens = BYTE_FALLBACK.convert_tokens_to_ids(["a", "<0xE6>", "</s>"])

    class FixedSampler(TokenSampler):
        def sample(self, logits: Any, seen: Any, params: Any) -> list[int]:
            return [tokens[min(len(ids) - 1, 2)] for ids in seen]

    engine = load_engine(tiny(), BYTE_FALLBACK, token_sampler=FixedSampler())
    assert text_of(deltas_of(engine, tokens[:1])) == "a\ufffd"
    engine.close()


def test_closing_the_answer_cancels_it(tiny_engine: TransformersEngine) -> None:
    steps = tiny_engine.generate(Prompt([], some_ids(3 * MAX_CHUNK)), GenerationParams())
    assert next(steps) == Delta()
    steps.close()
    assert list(steps) == []
    assert len(answer(tiny_engine, some_ids(5), ignore_eos=True)) == 24  # later answers are not affected


def test_loader_functions_are_called_in_load() -> None:
    calls: list[str] = []

    def load_model() -> Any:
        calls.append("model")
        return tiny()

    def load_tokenizer() -> Any:
        calls.append("tokenizer")
        return BYTES

    engine = TransformersEngine(load_model, load_tokenizer, "cpu")
    assert engine.loads_slowly
    assert calls == []
    engine.load(slots=2, context_len=2048)
    assert sorted(calls) == ["model", "tokenizer"]
    assert engine.tokenizer is BYTES
    assert engine.max_context_len == 2048
    assert engine.describe() == {
        "model": "Qwen2ForCausalLM",
        "device": "cpu",
        "dtype": "float32",
        "weights": "323 kB",
    }
    assert not TransformersEngine(tiny(), BYTES).loads_slowly


@pytest.mark.parametrize(
    ("model_device", "device", "expected"),
    [
        ("cpu", "cpu", True),
        ("cuda:1", "cuda", True),
        ("cuda:1", "cuda:1", True),
        ("cuda:1", "cuda:0", False),
        ("cpu", "cuda", False),
    ],
)
def test_is_on_compares_the_index_only_if_the_device_has_one(model_device: str, device: str, expected: bool) -> None:
    assert is_on(SimpleNamespace(device=torch.device(model_device)), torch.device(device)) == expected


def test_a_model_with_a_device_map_is_not_moved_and_decodes_sequentially(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    model.hf_device_map = {"model.layers.0": "cpu", "model.layers.1": "disk"}  # as accelerate sets it
    engine = TransformersEngine(model, BYTES, "meta")
    engine.load(slots=2, context_len=64)
    assert model.device.type == "cpu"
    assert "device: meta is ignored, because device_map distributed the layers" in caplog.text
    assert "cannot be batched (its layers are on several devices)" in caplog.text
    assert answer(engine, some_ids(8), max_new_tokens=4) == reference(model, some_ids(8), 4)
    engine.close()


def test_operations_that_the_device_does_not_support_are_an_error_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise TypeError("no float64 here")

    before = decode_threads()
    for name in ("_draw_from_all", "_draw_from_best"):
        with monkeypatch.context() as patch:
            patch.setattr(sampling, name, fail)
            engine = TransformersEngine(tiny(), BYTES)
            with pytest.raises(TypeError, match="no float64 here"):
                engine.load(slots=1, context_len=64)
            engine.close()
    assert decode_threads() == before


def test_a_prompt_without_an_answer_needs_the_blocks_of_an_answer_of_one_token() -> None:
    engine = TransformersEngine(tiny(layers=1), BYTES, optimize=False)
    engine.load(slots=2, context_len=256)
    assert isinstance(engine.decoder, Batch)
    block = engine.decoder.kv_cache.block_size
    for prompt_tokens, needed in ((block, block), (block + 1, 2 * block)):
        assert [engine.tokens_needed(prompt_tokens, length) for length in (0, 1)] == [needed, needed]
    assert engine.tokens_needed(block, 2) == 2 * block
    engine.close()
