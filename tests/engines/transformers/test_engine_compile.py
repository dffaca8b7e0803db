"""Tests of compiled models: their answers, and errors of the compilation."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.engines.transformers.cpu.int8_linear import quantize_linears
from aiochatstream.engines.transformers.cpu.native import decode_attention
from aiochatstream.engines.transformers.packed_step import PackedStep
from tests.engines.transformers.engine_harness import answer, concurrent_answers, load_engine
from tests.engines.transformers.tiny_models import assert_same, reference, some_ids, tiny

LAYERS = 2
"""Number of layers of the models: the fewest for which one of Gemma 2 has a window and another has none."""


def load_compiled(family: str, **options: Any) -> TransformersEngine:
    return load_engine(tiny(family, LAYERS), slots=3, context_len=1024, compile=True, **options)


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("a C++ compiler is missing: apt-get install g++")


@pytest.fixture(scope="module")
def llama() -> Iterator[TransformersEngine]:
    engine = load_compiled("Llama")
    yield engine
    engine.close()


@pytest.mark.filterwarnings("ignore")  # of torch, during compilation
def test_concurrent_and_repeated_answers_of_compiled_models_are_those_of_generate(
    llama: TransformersEngine,
) -> None:
    engines = {"Llama": llama, "Gemma 2": load_compiled("Gemma 2")}  # engines of two models at the same time
    prompts = [some_ids(length, seed) for seed, length in enumerate([1, 70, 600])]
    for family, engine in engines.items():
        plain = tiny(family, LAYERS)
        expected = [reference(copy.deepcopy(plain), ids, 16) for ids in prompts]
        for _ in range(2):  # the second time with cached prefixes
            answers = concurrent_answers(engine, prompts, max_new_tokens=16, ignore_eos=True)
            for ids, actual, generated in zip(prompts, answers, expected, strict=True):
                assert_same(plain, ids, actual, generated)
        assert engine.metrics()["prefix_cache_hits_total"] >= 2
    engines["Gemma 2"].close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["LFM2", "Mamba 2"])
def test_modules_with_states_are_not_compiled_but_their_models_are(family: str) -> None:
    plain, engine = tiny(family, LAYERS), load_compiled(family)
    prompts = [some_ids(length, seed) for seed, length in enumerate([1, 70, 300])]
    answers = concurrent_answers(engine, prompts, max_new_tokens=12, ignore_eos=True)
    for ids, actual in zip(prompts, answers, strict=True):
        assert_same(plain, ids, actual, reference(plain, ids, 12))
    engine.close()


@pytest.mark.filterwarnings("ignore")
def test_answers_of_a_compiled_model_in_int8_are_those_of_generate_with_the_same_weights() -> None:
    plain, engine = tiny("Llama", LAYERS), load_compiled("Llama", quantize="int8")
    quantize_linears(plain)
    prompts = [some_ids(length, seed) for seed, length in enumerate([1, 70, 300])]
    answers = concurrent_answers(engine, prompts, max_new_tokens=12, ignore_eos=True)
    for ids, actual in zip(prompts, answers, strict=True):
        assert_same(plain, ids, actual, reference(plain, ids, 12))
    engine.close()


@pytest.mark.filterwarnings("ignore")
def test_out_of_memory_in_compiled_code_fails_only_the_newest_request(
    llama: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, failures = PackedStep.attend, iter([MemoryError("none left")])

    def failing(*args: Any, **options: Any) -> torch.Tensor:
        for failure in failures:
            raise failure
        return attend(*args, **options)

    before = answer(llama, some_ids(5))
    with monkeypatch.context() as patch:
        patch.setattr(PackedStep, "attend", failing)
        with pytest.raises(MemoryError, match="Out of memory in a step of 1 requests: none left"):
            answer(llama, some_ids(9))
        assert next(failures, None) is None
    assert answer(llama, some_ids(5)) == before


def test_an_older_torch_is_an_error_that_names_the_required_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def older_compile(model: Any, *, fullgraph: bool, dynamic: bool, options: dict[str, Any]) -> Any:
        raise AssertionError("it was compiled")

    monkeypatch.setattr(torch, "compile", older_compile)
    with pytest.raises(RuntimeError, match=r"cannot be compiled \(.*isolate_recompiles.*\)\. It requires torch 2.13"):
        load_compiled("Llama")


def test_a_missing_compiler_is_an_error_that_names_the_requirements(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere/c++"))  # which has read CXX at its import
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # without code of earlier runs
    decode_attention.cache_clear()  # functions compiled by other tests
    with pytest.raises(RuntimeError, match=r"^compile: \w+ cannot be compiled \(.*\)\. It requires .* g\+\+ "):
        load_compiled("Qwen3")


def test_a_model_that_cannot_be_batched_is_not_compiled_and_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        engine = load_compiled("Mamba")
    assert "not compiled" in caplog.text
    engine.close()
