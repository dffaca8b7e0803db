"""Answers from models: the real small one, and tiny ones of several families with random weights."""

from __future__ import annotations

import copy
import gc
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
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
from aiochatstream.engines.transformers import TransformersEngine, batch, choose_dtype, sampling
from aiochatstream.engines.transformers.batch import PIECE_TOKENS
from aiochatstream.engines.transformers.cpu.prepacked_linear import PrepackedLinear
from aiochatstream.engines.transformers.engine import is_on
from tests.engines.transformers.test_detokenizing import BYTE_FALLBACK
from tests.engines.transformers.tiny_models import (
    ALONE,
    BATCHED,
    BYTES,
    assert_same,
    question,
    reference,
    some_ids,
    tiny,
)
from tests.helpers import PATIENCE

MOST = PIECE_TOKENS[1]
"""The longest piece of a prompt."""


def loaded(model: Any, tokenizer: Any = BYTES, *, slots: int = 2, **options: Any) -> TransformersEngine:
    engine = TransformersEngine(model, tokenizer, **options)
    engine.load(slots=slots, context_len=2048)
    return engine


@pytest.fixture(scope="module")
def tiny_engine() -> Iterator[TransformersEngine]:
    engine = loaded(tiny(), prefix_cache_bytes=0)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def real_engine(model: Any, tokenizer: Any) -> Iterator[TransformersEngine]:
    engine = loaded(model, tokenizer)
    yield engine
    engine.close()


def deltas_of(engine: TransformersEngine, ids: list[int], **params: Any) -> list[Delta]:
    given = {"temperature": 0, "max_new_tokens": 24} | params
    return list(engine.generate(Prompt([], ids), GenerationParams(**given)))


def answer(engine: TransformersEngine, ids: list[int], **params: Any) -> list[int]:
    return [token_id for delta in deltas_of(engine, ids, **params) for token_id in delta.token_ids]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


@pytest.mark.parametrize("text", ["What is the capital of France?", "こんにちは", "Count from 1 to 9."])
def test_greedy_answers_of_the_real_model_are_those_of_generate(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any, text: str
) -> None:
    ids = question(tokenizer, text)
    deltas = deltas_of(real_engine, ids, max_new_tokens=12)
    expected = reference(untouched_model, ids, 12)
    assert [token_id for delta in deltas for token_id in delta.token_ids] == expected
    assert text_of(deltas) == tokenizer.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
    assert deltas[-1].finish_reason == ("stop" if expected[-1] == tokenizer.eos_token_id else "length")


def test_a_repetition_penalty_counts_as_in_generate(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any
) -> None:
    ids = question(tokenizer, "Say one, one, one.")
    expected = reference(untouched_model, ids, 12, repetition_penalty=1.3)
    assert expected != reference(untouched_model, ids, 12)
    assert answer(real_engine, ids, max_new_tokens=12, repetition_penalty=1.3) == expected


def test_a_long_prompt_is_read_in_pieces_and_answered_as_by_generate(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any
) -> None:
    ids = question(tokenizer, "Which number is missing? " + " ".join(str(n) for n in range(100) if n != 77))
    assert len(ids) > 256
    deltas = deltas_of(real_engine, ids, max_new_tokens=8)
    assert [token_id for delta in deltas for token_id in delta.token_ids] == reference(untouched_model, ids, 8)


def told_together(engine: TransformersEngine, prompts: list[list[int]], **params: Any) -> list[list[int]]:
    """The answers to all prompts, asked at the same time."""
    begin = threading.Barrier(len(prompts))

    def ask(ids: list[int]) -> list[int]:
        begin.wait(PATIENCE)
        return answer(engine, ids, **params)

    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(ask, prompts))


LENGTHS = [5, 70, 600]
"""Shorter, and longer, than the sliding window and a piece of a prompt."""


@pytest.mark.parametrize("family", BATCHED)
def test_greedy_answers_of_every_family_are_those_of_generate_also_together_and_again(family: str) -> None:
    model = tiny(family)
    plain = copy.deepcopy(model)
    prompts = [some_ids(length, seed) for seed, length in enumerate(LENGTHS)]
    expected = [reference(plain, ids, 16) for ids in prompts]
    assert all(len(set(one)) > 3 for one in expected), "this model says too little to tell a difference"
    engine = loaded(model, slots=3)
    assert engine.metrics()["kv_cache_bytes"] > 0, "this one is not batched"
    for _ in range(2):  # the second time with what the first has left
        found = told_together(engine, prompts, max_new_tokens=16, ignore_eos=True)
        for ids, one, other in zip(prompts, found, expected, strict=True):
            assert_same(plain, ids, one, other)
    assert engine.metrics()["prefix_cache_hits_total"] >= 3
    engine.close()


@pytest.mark.parametrize("family", ALONE)
def test_models_that_cannot_be_batched_are_served_one_request_a_step_and_the_log_tells(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(family)
    plain = copy.deepcopy(model)
    prompts = [some_ids(5), some_ids(300, 1)]
    expected = [reference(plain, ids, 12) for ids in prompts]
    with caplog.at_level(logging.WARNING, "aiochatstream"):
        engine = loaded(model)
    assert f"{type(model).__name__} answers one request a step: " in caplog.text
    assert model.config._attn_implementation == plain.config._attn_implementation
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))
    for ids, one, other in zip(prompts, told_together(engine, prompts, max_new_tokens=12), expected, strict=True):
        assert_same(plain, ids, one, other)
    engine.close()


def test_a_dtype_that_the_cpu_computes_slowly_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for units, slow in ({}, True), ({"avx512_bf16": True}, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        caplog.clear()
        loaded(tiny().to(torch.bfloat16)).close()
        assert ("computes slowly in bfloat16" in caplog.text) is slow
        assert choose_dtype(torch.device("cpu")) == (torch.float32 if slow else torch.bfloat16)
    caplog.clear()
    loaded(tiny()).close()
    assert "slowly" not in caplog.text


def test_a_model_whose_forward_pass_is_of_another_kind_is_served_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    expected = reference(copy.deepcopy(model), some_ids(9))
    plain_forward = model.forward

    def forward(input_ids: Any, past_key_values: Any = None, use_cache: Any = None) -> Any:
        return plain_forward(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)

    model.forward = forward
    engine = loaded(model)
    assert "answers one request a step" in caplog.text
    assert answer(engine, some_ids(9)) == expected


def test_the_real_model_answers_many_together_as_each_alone(
    real_engine: TransformersEngine, untouched_model: Any, tokenizer: Any
) -> None:
    """More than there are rows, so that they join and leave as others run; two share their beginning."""
    asked = ["Name a colour.", "Name a colour and a tree.", "Was ist eine Katze?", "Count from 1 to 9."]
    prompts = [question(tokenizer, text) for text in asked]
    found = told_together(real_engine, prompts, max_new_tokens=7, ignore_eos=True)
    for ids, one in zip(prompts, found, strict=True):
        expected = reference(untouched_model, ids, 7, eos_token_id=-1)
        assert_same(untouched_model, ids, one, expected)


@pytest.fixture(scope="module", params=["Llama", "Gemma 3"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[TransformersEngine, Any]]:
    """An engine that keeps few prompts, and a copy of its model."""
    model = tiny(request.param)
    plain = copy.deepcopy(model)
    engine = loaded(model, slots=3, prefix_cache_bytes=1_000_000)
    yield engine, plain
    assert 0 < engine.metrics()["prefix_cache_bytes"] <= 1_000_000
    engine.close()


visits = st.tuples(st.integers(0, 2), st.integers(1, 150), st.integers(1, 8), st.none() | st.integers(0, 7))
"""Which beginning, how much of it, tokens to answer with, and after which of them the client leaves."""


@settings(max_examples=8, deadline=None)
@given(st.lists(visits, min_size=2, max_size=7))
def test_in_any_company_answers_are_those_of_generate(
    pair: tuple[TransformersEngine, Any], plan: list[tuple[int, int, int, int | None]]
) -> None:
    engine, plain = pair

    def visit(seed: int, length: int, count: int, leaves: int | None) -> list[int]:
        params = GenerationParams(temperature=0, max_new_tokens=count, ignore_eos=True)
        said: list[int] = []
        with closing(engine.generate(Prompt([], some_ids(length, seed)), params)) as steps:
            for delta in steps:
                said += delta.token_ids
                if leaves is not None and len(said) >= leaves:
                    break
        return said

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(3) as threads:
        patch.setattr(batch, "PIECE_TOKENS", (16, 16))
        found = [threads.submit(visit, *one) for one in plan]
        wait(found)
    for (seed, length, count, leaves), one in zip(plan, found, strict=True):
        said = one.result()
        assert len(said) == (count if leaves is None else min(count, leaves)) or (leaves == 0 and len(said) == 1)
        ids = some_ids(length, seed)
        assert_same(plain, ids, said, reference(plain, ids, count)[: len(said)])


def test_an_answer_whose_stop_logic_fails_fails_alone(
    tiny_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(tiny_engine, some_ids(9))
    push = StopStrings.push

    def fail(self: StopStrings, text: str) -> tuple[str, bool]:
        if self._stops:
            raise ZeroDivisionError
        return push(self, text)

    monkeypatch.setattr(StopStrings, "push", fail)
    neighbour = tiny_engine.generate(Prompt([], some_ids(9)), GenerationParams(temperature=0, max_new_tokens=24))
    begun = [next(neighbour)]
    with pytest.raises(ZeroDivisionError):
        answer(tiny_engine, some_ids(9), stop=("never",))
    assert [token_id for delta in (*begun, *neighbour) for token_id in delta.token_ids] == expected


def test_without_optimize_the_weights_stay_untouched_and_with_it_answers_stay_the_same() -> None:
    models = [tiny(), tiny()]
    plain = copy.deepcopy(models[0])
    engines = [loaded(model, optimize=optimize) for model, optimize in zip(models, (False, True), strict=True)]
    state = models[0].state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(one, state[name]) for name, one in plain.state_dict().items())
    assert not any(isinstance(module, PrepackedLinear) for module in models[0].modules())
    assert any(isinstance(module, PrepackedLinear) for module in models[1].modules())
    expected = reference(plain, some_ids(40))
    for engine, model in zip(engines, models, strict=True):
        assert answer(engine, some_ids(40)) == expected
        assert reference(model, some_ids(40)) == expected  # who owns the model can still use it
        engine.close()


@pytest.mark.parametrize(("length", "pieces"), [(1, 1), (MOST, 1), (MOST + 1, 2), (2 * MOST + 5, 3)])
def test_between_the_pieces_of_a_prompt_there_is_a_step_to_cancel_at(
    tiny_engine: TransformersEngine, length: int, pieces: int
) -> None:
    deltas = deltas_of(tiny_engine, some_ids(length), max_new_tokens=2, ignore_eos=True)
    assert deltas[: pieces - 1] == [Delta()] * (pieces - 1)
    assert [len(delta.token_ids) for delta in deltas[pieces - 1 :]] == [1, 1]


def test_each_forward_pass_is_told_of() -> None:
    steps: list[str] = []
    engine = TransformersEngine(tiny(), BYTES)
    engine.on_step = lambda kind, seconds: steps.append(kind)
    engine.load(slots=1, context_len=2048)
    deltas_of(engine, some_ids(MOST + 5), max_new_tokens=3, ignore_eos=True)
    engine.close()
    warm, last = steps[:-4], steps[-4:]
    assert warm == ["prefill", *["decode"] * (len(warm) - 1)]
    assert last == ["prefill", "prefill", "decode", "decode"]


@pytest.mark.parametrize("share", [True, False])
def test_users_share_what_was_computed_only_where_they_may(share: bool) -> None:
    engine = loaded(tiny(), share_prefixes=share)
    params = GenerationParams(temperature=0, max_new_tokens=4, ignore_eos=True)

    def cached_tokens(owner: str) -> int:
        return sum(one.cached_tokens for one in engine.generate(Prompt([], some_ids(50), owner=owner), params))

    told = [cached_tokens(owner) for owner in ("anna", "bob", "anna", "bob")]
    engine.close()
    assert told == ([0, 49, 49, 49] if share else [0, 0, 49, 49])


def test_cached_tokens_tell_what_was_not_computed_again() -> None:
    engine = loaded(tiny())
    ids = some_ids(50)
    first = deltas_of(engine, ids, max_new_tokens=8, ignore_eos=True)
    said = [token_id for delta in first for token_id in delta.token_ids]
    again = deltas_of(engine, ids, max_new_tokens=8, ignore_eos=True)
    follows = deltas_of(engine, ids + said + some_ids(9, 1), max_new_tokens=1, ignore_eos=True)
    engine.close()
    assert [delta.cached_tokens for delta in first] == [0] * 8
    assert [delta.cached_tokens for delta in again if delta.cached_tokens] == [49]
    assert [delta.cached_tokens for delta in follows if delta.cached_tokens] == [50 + 8 - 1]
    assert [token_id for delta in again for token_id in delta.token_ids] == said


def test_prompt_and_answer_may_fill_the_context_exactly(tiny_engine: TransformersEngine) -> None:
    assert tiny_engine.max_context_len == 2048
    assert len(answer(tiny_engine, some_ids(2045), max_new_tokens=3, ignore_eos=True)) == 3
    assert len(answer(tiny_engine, some_ids(2047), max_new_tokens=1, ignore_eos=True)) == 1


@pytest.mark.parametrize(
    ("ids", "complaint"),
    [([], "prompt is empty"), ([3] * 2048, "do not fit into the context of 2048"), ([5, 384], "Token 384 is none")],
    ids=["empty", "too long", "unknown token"],
)
def test_a_prompt_that_cannot_be_read_fails_alone(
    tiny_engine: TransformersEngine, ids: list[int], complaint: str
) -> None:
    neighbour = tiny_engine.generate(Prompt([], some_ids(9)), GenerationParams(temperature=0, max_new_tokens=24))
    begun = [next(neighbour)]
    with pytest.raises(ValueError, match=complaint):
        answer(tiny_engine, ids)
    found = [token_id for delta in (*begun, *neighbour) for token_id in delta.token_ids]
    assert found == answer(tiny_engine, some_ids(9))


@pytest.mark.parametrize("context_len", [1, 2, 8, 41])
def test_a_short_context_is_loaded_and_filled(context_len: int) -> None:
    engine = TransformersEngine(tiny(), BYTES)
    engine.load(slots=2, context_len=context_len)
    assert len(answer(engine, some_ids(context_len), max_new_tokens=1, ignore_eos=True)) == 1
    engine.close()


def test_a_window_that_is_told_nowhere_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("Qwen2")  # its layers are made: they see everything
    model.config.sliding_window, model.config.use_sliding_window = 500, True
    model.config.layer_types, model.model.has_sliding_layers = ["sliding_attention"] * 6, True
    engine = loaded(model)
    assert "does not tell how far it sees" in caplog.text
    engine.close()


def test_a_smaller_cache_makes_a_shorter_context_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    a_token = 6 * 2 * 16 * 4  # layers, keys and values, head size, float32
    engine = loaded(tiny(), kv_cache_bytes=2 * 100 * a_token + 5, prefix_cache_bytes=0)
    assert engine.max_context_len == 100
    assert "100 tokens long, not 2048" in caplog.text
    figures = engine.metrics()
    assert figures["kv_cache_bytes"] == 2 * 100 * a_token
    assert len(answer(engine, some_ids(90), max_new_tokens=11, ignore_eos=True)) == 11
    assert engine.metrics()["kv_cache_bytes"] == figures["kv_cache_bytes"]
    engine.close()
    assert engine.metrics() == {}
    with pytest.raises(
        ValueError, match=f"^kv_cache_bytes: .*room for 3 tokens in each of 2 rows; 16 .* {32 * a_token}"
    ):
        loaded(tiny(), kv_cache_bytes=7 * a_token)


@pytest.mark.parametrize(
    "options", [{"kv_cache_bytes": 0}, {"prefix_cache_bytes": -1}, {"max_step_ms": 0}, {"max_step_ms": float("nan")}]
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(options))}: "):
        TransformersEngine(tiny(), BYTES, **options)


def threads_of_engines() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name == "aiochatstream-decode"}


def test_close_ends_answers_under_way_and_the_thread_and_is_safe_at_any_time() -> None:
    before = threads_of_engines()
    TransformersEngine(tiny(), BYTES).close()  # never loaded
    engine = loaded(tiny())
    steps = engine.generate(Prompt([], some_ids(5)), GenerationParams(max_new_tokens=1000, ignore_eos=True))
    next(steps)
    engine.close()
    assert threads_of_engines() == before
    with pytest.raises(RuntimeError, match="closed"):
        list(steps)
    with pytest.raises(RuntimeError, match="not loaded"):
        answer(engine, some_ids(5))
    engine.close()


def test_a_load_that_fails_half_way_leaves_nothing_running_when_closed() -> None:
    def fail(kind: str, seconds: float) -> None:
        raise ZeroDivisionError("in the first step")

    before = threads_of_engines()
    engine = TransformersEngine(tiny(), BYTES)
    engine.on_step = fail
    with pytest.raises(RuntimeError, match="in the first step"):
        engine.load(slots=1, context_len=64)
    engine.close()
    assert threads_of_engines() == before


def test_an_engine_that_is_dropped_ends_its_thread_and_gives_its_memory_back() -> None:
    before = threads_of_engines()
    engine = loaded(tiny())
    cache = weakref.ref(engine._answers._cache)  # type: ignore[union-attr]
    answer(engine, some_ids(5))
    del engine
    gc.collect()
    assert threads_of_engines() == before
    assert cache() is None


LEFT = """
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
print("left")
"""


def test_a_program_that_ends_without_close_ends_quietly() -> None:
    program = [sys.executable, "-c", LEFT]
    root = Path(__file__).parents[3]
    ended = subprocess.run(program, cwd=root, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "left\n"), ended.stderr
    assert "terminate called" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_same_seed_gives_the_same_answer_and_others_differ(tiny_engine: TransformersEngine) -> None:
    ids = some_ids(20)
    first, again, other = (answer(tiny_engine, ids, temperature=1.5, seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_a_seed_gives_the_same_answer_whatever_the_neighbours_are(tiny_engine: TransformersEngine) -> None:
    options: dict[str, Any] = {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.1, "max_new_tokens": 20}
    alone = answer(tiny_engine, some_ids(20), seed=7, **options)
    neighbours = [
        tiny_engine.generate(Prompt([], some_ids(30)), GenerationParams(**{"max_new_tokens": 60, **given}))
        for given in ({"temperature": 0.0}, {"top_k": 3, "seed": 7}, {"temperature": 2.0, "seed": 7})
    ]
    for neighbour in neighbours:
        next(neighbour)
        assert answer(tiny_engine, some_ids(20), seed=7, **options) == alone
        neighbour.close()


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
def test_every_value_in_range_gives_an_answer(tiny_engine: TransformersEngine, params: dict[str, Any]) -> None:
    assert len(answer(tiny_engine, some_ids(20), max_new_tokens=4, ignore_eos=True, **params)) == 4


@pytest.mark.parametrize("place", ["generation config, int", "generation config, list", "model config", "tokenizer"])
def test_an_end_of_sentence_id_ends_the_answer_wherever_it_is_told(place: str) -> None:
    model, tokenizer, ids = tiny(), ByT5Tokenizer(), some_ids(20)
    whole = answer(loaded(model), ids, max_new_tokens=20, ignore_eos=True)
    end = whole[4]
    expected = whole[: whole.index(end) + 1]
    if place == "tokenizer":
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    elif place == "model config":
        model.config.eos_token_id = end
    else:
        model.generation_config.eos_token_id = [300, end] if place.endswith("list") else end
    engine = loaded(model, tokenizer)
    deltas = deltas_of(engine, ids, max_new_tokens=20)
    assert [token_id for delta in deltas for token_id in delta.token_ids] == expected
    assert deltas[-1].finish_reason == "stop"

    regardless = deltas_of(engine, ids, max_new_tokens=20, ignore_eos=True)
    assert [token_id for delta in regardless for token_id in delta.token_ids] == whole
    assert [delta.finish_reason for delta in regardless if delta.finish_reason] == ["length"]


def test_a_stop_string_that_is_a_special_token_ends_the_answer_too() -> None:
    model, tokenizer = tiny(), ByT5Tokenizer()
    ids = some_ids(9)
    whole = reference(model, ids, 20)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    end = whole[6]
    tokenizer._added_tokens_decoder[end] = tokenizer.added_tokens_decoder[tokenizer.convert_tokens_to_ids("<|im_end|>")]
    engine = loaded(model, tokenizer)
    expected = whole[: whole.index(end) + 1]
    deltas = deltas_of(engine, ids, max_new_tokens=20, stop=("never", "<|im_end|>"), ignore_eos=True)
    assert [token_id for delta in deltas for token_id in delta.token_ids] == expected
    assert deltas[-1].finish_reason == "stop"
    engine.close()


@pytest.fixture(scope="module")
def counted(real_engine: TransformersEngine, tokenizer: Any) -> tuple[list[int], list[Delta]]:
    """A question, and the deltas of its answer, 12 tokens."""
    ids = question(tokenizer, "Count from 1 to 9.")
    return ids, deltas_of(real_engine, ids, max_new_tokens=12)


def test_a_stop_string_split_over_tokens_ends_the_answer_and_never_shows(
    real_engine: TransformersEngine, counted: tuple[list[int], list[Delta]]
) -> None:
    ids, deltas = counted
    pieces = [delta.text for delta in deltas if delta.text]
    stop = pieces[4][-1] + pieces[5] + pieces[6][0]
    text = "".join(pieces)
    stopped = deltas_of(real_engine, ids, max_new_tokens=12, stop=(stop,))
    assert text_of(stopped) == text[: text.index(stop)]
    assert stopped[-1].finish_reason == "stop"
    assert len(stopped) < len(deltas)


def test_what_might_have_become_a_stop_string_shows_when_the_answer_ends_by_its_length(
    real_engine: TransformersEngine, counted: tuple[list[int], list[Delta]]
) -> None:
    ids, deltas = counted
    text = text_of(deltas)
    held = deltas_of(real_engine, ids, max_new_tokens=12, stop=(text[-2:] + "###",))
    assert held[-1].finish_reason == "length"
    assert text_of(held) == text


def test_two_threads_at_once_give_the_answers_that_each_gives_alone(
    real_engine: TransformersEngine, tokenizer: Any
) -> None:
    prompts = [question(tokenizer, text) for text in ("Name a colour.", "Was ist eine Katze?")]
    alone = [answer(real_engine, ids, max_new_tokens=8) for ids in prompts]
    together = threading.Barrier(2)

    def in_step(ids: list[int]) -> list[int]:
        written: list[int] = []
        for delta in real_engine.generate(Prompt([], ids), GenerationParams(temperature=0, max_new_tokens=8)):
            together.wait(PATIENCE)
            written += delta.token_ids
        return written

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(in_step, prompts)) == alone


def test_an_answer_that_was_begun_goes_on_as_if_it_had_never_been_cut(
    real_engine: TransformersEngine, tokenizer: Any
) -> None:
    ids = question(tokenizer, "Count from 1 to 9.")
    whole = deltas_of(real_engine, ids, max_new_tokens=16)
    tokens = [token_id for delta in whole for token_id in delta.token_ids]
    begun = tokenizer.decode(tokens[:7])
    prompt = Prompt([], ids + tokens[:7], continued=True)
    params = GenerationParams(
        temperature=0, max_new_tokens=9, stop=(begun,)
    )  # which was met before, and counts no more
    rest = list(real_engine.generate(prompt, params))
    assert [token_id for delta in rest for token_id in delta.token_ids] == tokens[7:]
    assert begun + text_of(rest) == text_of(whole)
    assert sum(delta.cached_tokens for delta in rest) >= len(ids)


@pytest.mark.parametrize(("continued", "text"), [(False, " "), (True, "  ")])
def test_only_at_the_beginning_of_a_text_its_first_space_is_the_tokenizers_own(continued: bool, text: str) -> None:
    engine = loaded(tiny(), BYTE_FALLBACK)
    space = BYTE_FALLBACK.convert_tokens_to_ids("▁")
    params = GenerationParams(logit_bias={space: 100}, max_new_tokens=2, temperature=0)
    assert text_of(list(engine.generate(Prompt([], BYTE_FALLBACK("ab")["input_ids"], continued), params))) == text
    engine.close()


def test_an_answer_that_ends_in_half_a_character_has_all_its_text() -> None:
    written = BYTE_FALLBACK.convert_tokens_to_ids(["a", "<0xE6>", "</s>"])

    class Written(TokenSampler):
        def sample(self, logits: Any, seen: Any, params: Any) -> list[int]:
            return [written[min(len(ids) - 1, 2)] for ids in seen]

    engine = loaded(tiny(), BYTE_FALLBACK, token_sampler=Written())
    assert text_of(deltas_of(engine, written[:1])) == "a\ufffd"
    engine.close()


def test_closing_the_answer_ends_it_without_another_step(tiny_engine: TransformersEngine) -> None:
    steps = tiny_engine.generate(Prompt([], some_ids(3 * MOST)), GenerationParams())
    assert next(steps) == Delta()
    steps.close()
    assert list(steps) == []
    assert len(answer(tiny_engine, some_ids(5), ignore_eos=True)) == 24  # and the next answer is not in its way


def test_functions_that_load_are_called_in_load_and_not_before() -> None:
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
    assert engine.describe() == {"model": "Qwen2ForCausalLM", "device": "cpu", "dtype": "float32"}
    assert not TransformersEngine(tiny(), BYTES).loads_slowly


@pytest.mark.parametrize(
    ("where", "device", "there"),
    [
        ("cpu", "cpu", True),
        ("cuda:1", "cuda", True),
        ("cuda:1", "cuda:1", True),
        ("cuda:1", "cuda:0", False),
        ("cpu", "cuda", False),
    ],
)
def test_a_model_stays_where_it_is_if_that_is_the_device_asked_for(where: str, device: str, there: bool) -> None:
    assert is_on(SimpleNamespace(device=torch.device(where)), torch.device(device)) == there


def test_what_a_device_cannot_do_shows_when_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Any:
        raise TypeError("no float64 here")

    before = threads_of_engines()
    for name in ("_draw_of_all", "_draw_of_best"):
        with monkeypatch.context() as patch:
            patch.setattr(sampling, name, fail)
            engine = TransformersEngine(tiny(), BYTES)
            with pytest.raises(TypeError, match="no float64 here"):
                engine.load(slots=1, context_len=64)
            engine.close()
    assert threads_of_engines() == before
