"""Answers from models: the real small one, and tiny ones of several families with random weights."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    ByT5Tokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    Qwen2Config,
)

from aiochatstream import Delta, GenerationParams, Prompt
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.engines.transformers.engine import PREFILL_TOKENS, is_on
from tests.helpers import PATIENCE

BYTES = ByT5Tokenizer()
WINDOW = 64
GROUPED = {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16}
FAMILIES: dict[str, Callable[..., Any]] = {
    "Qwen2": functools.partial(Qwen2Config, **GROUPED),
    "GPT-2": GPT2Config,
    "GPT-NeoX": functools.partial(GPTNeoXConfig, intermediate_size=64),
    "Gemma 2": functools.partial(Gemma2Config, **GROUPED, sliding_window=WINDOW),
    "Gemma 3": functools.partial(Gemma3TextConfig, **GROUPED, sliding_window=WINDOW),
}


def tiny(family: str = "Qwen2") -> Any:
    """A model with random weights and no end of sentence. Spread and seed are such that answers vary, without ties."""
    config = FAMILIES[family](
        vocab_size=len(BYTES),
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.45,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=BYTES.pad_token_id,
    )
    torch.manual_seed(2)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def loaded(model: Any, tokenizer: Any = BYTES) -> TransformersEngine:
    engine = TransformersEngine(model, tokenizer)
    engine.load()
    return engine


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Torch's threads wait for one another in busy loops: beside any other load they make a step many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_engine() -> TransformersEngine:
    return loaded(tiny())


@pytest.fixture(scope="module")
def real_engine(model: Any, tokenizer: Any) -> TransformersEngine:
    return loaded(model, tokenizer)


def deltas_of(engine: TransformersEngine, ids: list[int], **params: Any) -> list[Delta]:
    given = {"temperature": 0, "max_new_tokens": 24} | params
    return list(engine.generate(Prompt([], ids), GenerationParams(**given)))


def answer(engine: TransformersEngine, ids: list[int], **params: Any) -> list[int]:
    return [token_id for delta in deltas_of(engine, ids, **params) for token_id in delta.token_ids]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def reference(model: Any, ids: list[int], max_new_tokens: int = 24, **options: Any) -> list[int]:
    """What ``model.generate`` answers, greedy."""
    with torch.inference_mode():
        inputs = torch.tensor([ids])
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            **options,
        )
    new: list[int] = output[0, len(ids) :].tolist()
    return new


def question(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)[
        "input_ids"
    ]
    return ids


def some_ids(length: int, seed: int = 0) -> list[int]:
    """Random bytes."""
    return torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("text", ["What is the capital of France?", "こんにちは", "Count from 1 to 9."])
def test_greedy_answers_of_the_real_model_are_those_of_generate(
    real_engine: TransformersEngine, model: Any, tokenizer: Any, text: str
) -> None:
    ids = question(tokenizer, text)
    deltas = deltas_of(real_engine, ids, max_new_tokens=12)
    expected = reference(model, ids, 12)
    assert [token_id for delta in deltas for token_id in delta.token_ids] == expected
    assert text_of(deltas) == tokenizer.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
    assert deltas[-1].finish_reason == ("stop" if expected[-1] == tokenizer.eos_token_id else "length")


def test_a_repetition_penalty_counts_as_in_generate(
    real_engine: TransformersEngine, model: Any, tokenizer: Any
) -> None:
    ids = question(tokenizer, "Say one, one, one.")
    expected = reference(model, ids, 12, repetition_penalty=1.3)
    assert expected != reference(model, ids, 12)
    assert answer(real_engine, ids, max_new_tokens=12, repetition_penalty=1.3) == expected


def test_a_long_prompt_is_read_in_pieces_and_answered_as_by_generate(
    real_engine: TransformersEngine, model: Any, tokenizer: Any
) -> None:
    ids = question(tokenizer, "Which number is missing? " + " ".join(str(n) for n in range(100) if n != 77))
    assert len(ids) > PREFILL_TOKENS
    deltas = deltas_of(real_engine, ids, max_new_tokens=8)
    assert [token_id for delta in deltas for token_id in delta.token_ids] == reference(model, ids, 8)


@pytest.mark.parametrize("length", [5, 600])  # shorter, and longer, than the sliding window and PREFILL_TOKENS
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_of_every_family_are_those_of_generate(family: str, length: int) -> None:
    model, ids = tiny(family), some_ids(length)
    expected = reference(model, ids)
    assert len(set(expected)) > 3, "this model says too little to tell a difference"
    assert answer(loaded(model), ids, ignore_eos=True) == expected


@pytest.mark.parametrize(
    ("length", "pieces"), [(1, 1), (PREFILL_TOKENS, 1), (PREFILL_TOKENS + 1, 2), (2 * PREFILL_TOKENS + 5, 3)]
)
def test_between_the_pieces_of_a_prompt_there_is_a_step_to_cancel_at(
    tiny_engine: TransformersEngine, length: int, pieces: int
) -> None:
    deltas = deltas_of(tiny_engine, some_ids(length), max_new_tokens=2, ignore_eos=True)
    assert deltas[:pieces] == [Delta()] * pieces
    assert [len(delta.token_ids) for delta in deltas[pieces:]] == [1, 1]


def test_each_forward_pass_is_told_of(tiny_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(tiny_engine, "on_step", lambda kind, seconds: steps.append(kind))
    deltas_of(tiny_engine, some_ids(PREFILL_TOKENS + 5), max_new_tokens=3, ignore_eos=True)
    assert steps == ["prefill", "prefill", "decode", "decode"]


def test_the_same_seed_gives_the_same_answer_and_others_differ(tiny_engine: TransformersEngine) -> None:
    ids = some_ids(20)
    first, again, other = (answer(tiny_engine, ids, temperature=1.5, seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other


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


def test_closing_the_answer_ends_it_without_another_step(tiny_engine: TransformersEngine) -> None:
    steps = tiny_engine.generate(Prompt([], some_ids(3 * PREFILL_TOKENS)), GenerationParams())
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
    engine.load()
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
