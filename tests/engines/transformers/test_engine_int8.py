"""Tests of engines with quantize="int8": exactness, memory, and errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import OlmoConfig, OlmoForCausalLM

from aiochatstream.engines.transformers import TransformersEngine, engine
from aiochatstream.engines.transformers.cpu import int8_linear
from aiochatstream.engines.transformers.cpu.int8_linear import Int8Rows, quantize_linears
from tests.engines.transformers.engine_harness import answer, concurrent_answers, load_engine
from tests.engines.transformers.tiny_models import BYTES, assert_same, question, reference, some_ids, tiny

pytestmark = pytest.mark.slow  # the kernel is compiled

CAPITAL = "The capital of France is Paris."


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma 3", "LFM2", "Mamba"])
def test_answers_are_those_of_generate_with_the_same_weights(family: str) -> None:
    plain = copy.deepcopy(tiny(family))
    quantize_linears(plain)
    loaded = load_engine(tiny(family), slots=4, context_len=512, quantize="int8")
    assert (loaded.batch_obstacle is None) == (family != "Mamba")
    prompts = [some_ids(length, seed) for seed, length in enumerate((1, 40, 200))]
    for _ in range(2):  # the second time with cached prefixes
        answers = concurrent_answers(loaded, prompts, max_new_tokens=16, ignore_eos=True)
        for ids, actual in zip(prompts, answers, strict=True):
            assert_same(plain, ids, actual, reference(plain, ids, 16))
    loaded.close()


def test_the_small_model_gives_the_same_answer_alone_and_in_company(untouched_model: Any, tokenizer: Any) -> None:
    own = copy.deepcopy(untouched_model, {id(weight): weight for weight in untouched_model.parameters()})
    loaded = load_engine(own, tokenizer, slots=4, context_len=512, quantize="int8")
    assert loaded.batch_obstacle is None
    assert loaded.describe()["dtype"] == "float32, int8"
    ids = question(tokenizer, "What is the capital of France?")
    alone = answer(loaded, ids, max_new_tokens=12)
    company = [question(tokenizer, text) for text in ("Count to nine.", "Write a story.")]
    assert concurrent_answers(loaded, [ids, *company], max_new_tokens=12)[0] == alone
    assert tokenizer.decode(alone, skip_special_tokens=True).startswith(CAPITAL)
    loaded.close()


def test_weights_are_about_a_quarter_of_those_in_float32() -> None:
    sizes = []
    for quantize in (None, "int8"):
        loaded = load_engine(tiny("Llama"), quantize=quantize)
        sizes.append(loaded._weight_bytes)
        loaded.close()
    assert sizes[1] < 0.4 * sizes[0], "norms are a considerable part of a tiny model"


@pytest.mark.parametrize("family", ["Mamba 2", "Gemma 3"])
def test_no_step_computes_a_plain_weight(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, computed = load_engine(tiny(family), quantize="int8"), list[Int8Rows]()
    take_all = Int8Rows.take_all

    def count_and_take(rows: Int8Rows) -> torch.Tensor:
        computed.append(rows)
        return take_all(rows)

    monkeypatch.setattr(Int8Rows, "take_all", count_and_take)
    assert len(answer(loaded, some_ids(20), max_new_tokens=4, ignore_eos=True)) == 4
    assert not computed, "a model reads the dtype of a weight, for example"
    loaded.close()


def test_a_model_without_other_parameters_is_converted() -> None:
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = OlmoConfig(**sizes, num_attention_heads=2, eos_token_id=None, pad_token_id=0)
    loaded = load_engine(OlmoForCausalLM(config).eval(), quantize="int8", context_len=128)
    assert loaded.describe()["dtype"] == "float32, int8"
    assert len(answer(loaded, some_ids(20), max_new_tokens=4, ignore_eos=True)) == 4
    loaded.close()


def test_a_closed_engine_can_be_loaded_again() -> None:
    loaded = load_engine(tiny(), quantize="int8")
    ids = some_ids(30)
    before = answer(loaded, ids)
    loaded.close()
    loaded.load(2, 512)
    assert loaded.describe()["dtype"] == "float32, int8"
    assert answer(loaded, ids) == before
    loaded.close()


def test_other_names_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"^quantize: must be None or int8, not 'int4'\.$"):
        TransformersEngine(tiny(), BYTES, quantize="int4")  # type: ignore[arg-type]


def test_a_quantised_checkpoint_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "quantization_method", lambda config: "awq")
    with pytest.raises(ValueError, match=r"^quantize: must be absent for a checkpoint that is quantised \(awq\)\.$"):
        load_engine(tiny(), quantize="int8")


def test_a_missing_compiler_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setattr(int8_linear, "kernel", int8_linear.kernel.__wrapped__)  # without functions of other tests
    model, ids = tiny(), some_ids(20)
    plain = copy.deepcopy(model)
    message = r"^quantize: int8 requires code that g\+\+ cannot compile here \(.*/nowhere/c\+\+.*\)\.$"
    with pytest.raises(RuntimeError, match=message):
        load_engine(model, quantize="int8")
    monkeypatch.undo()
    unchanged = load_engine(model)
    assert unchanged.describe()["dtype"] == "float32"
    assert_same(plain, ids, answer(unchanged, ids, max_new_tokens=8, ignore_eos=True), reference(plain, ids, 8))
    unchanged.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_has_the_answers_of_its_weights_in_float32(dtype: torch.dtype) -> None:
    loaded = load_engine(tiny().to(dtype), quantize="int8")
    converted = load_engine(tiny().to(dtype).float(), quantize="int8")
    ids = some_ids(30)
    assert loaded.describe()["dtype"] == "float32, int8"
    assert answer(loaded, ids) == answer(converted, ids)
    loaded.close()
    converted.close()
