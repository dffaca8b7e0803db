"""``compile=True``: the same answers, of each engine its own model's; what cannot be compiled says why."""

from __future__ import annotations

import copy
import logging
import shutil
from typing import Any

import pytest
import torch

from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.engines.transformers.attention import Step
from aiochatstream.engines.transformers.cpu.native import decode_attention
from tests.engines.transformers.models import BYTES, assert_same, reference, some_ids, tiny
from tests.engines.transformers.test_engine import answer, told_together

LAYERS = 2
"""Few, because the time to compile grows with them; two, because Gemma's have a window in turn."""


def compiled(family: str) -> TransformersEngine:
    engine = TransformersEngine(tiny(family, LAYERS), BYTES, compile=True)
    engine.load(slots=3, context_len=1024)
    return engine


@pytest.fixture(autouse=True)
def compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("a C++ compiler is missing: apt-get install g++")


@pytest.mark.filterwarnings("ignore")  # torch's own, which it gives while it compiles
def test_greedy_answers_of_compiled_models_are_those_of_generate_together_and_again() -> None:
    families = ("Llama", "Gemma 2")
    engines = [compiled(family) for family in families]  # at the same time: none answers for another
    prompts = [some_ids(length, seed) for seed, length in enumerate([1, 70, 600])]
    for family, engine in zip(families, engines, strict=True):
        plain = tiny(family, LAYERS)
        expected = [reference(copy.deepcopy(plain), ids, 16) for ids in prompts]
        for _ in range(2):  # the second time with what the first has left
            found = told_together(engine, prompts, max_new_tokens=16, ignore_eos=True)
            for ids, one, other in zip(prompts, found, expected, strict=True):
                assert_same(plain, ids, one, other)
        assert engine.figures()["prefix_cache_hits_total"] >= 2
    for engine in engines:
        engine.close()


@pytest.mark.filterwarnings("ignore")
def test_out_of_memory_in_compiled_code_fails_the_newest_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = compiled("Llama")
    attend, failures = Step.attend, iter([MemoryError("none left")] * 2)

    def failing(*args: Any, **options: Any) -> torch.Tensor:
        for failure in failures:
            raise failure
        return attend(*args, **options)

    before = answer(engine, some_ids(5))
    with monkeypatch.context() as patch:
        patch.setattr(Step, "attend", failing)
        with pytest.raises(MemoryError, match="Out of memory in a step of 1 requests: none left"):
            answer(engine, some_ids(9))  # after what was kept was dropped, for the first failure
        assert next(failures, None) is None
    assert answer(engine, some_ids(5)) == before
    engine.close()


def test_an_older_torch_does_not_compile_and_the_error_names_the_one_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(model: Any, *, fullgraph: bool, dynamic: bool, options: dict[str, Any]) -> Any:
        raise AssertionError("it was compiled")

    monkeypatch.setattr(torch, "compile", older)
    with pytest.raises(RuntimeError, match=r"cannot be compiled here \(.*isolate_recompiles.*\)\. It takes torch 2.13"):
        compiled("Llama")


def test_without_a_compiler_the_engine_does_not_load_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    decode_attention.cache_clear()  # what was compiled before still works
    with pytest.raises(RuntimeError, match=r"^compile: \w+ cannot be compiled here \(.*\)\. It takes .* g\+\+ "):
        compiled("Qwen3")


def test_a_model_that_cannot_be_batched_is_not_compiled_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        engine = compiled("Mamba")
    assert "not compiled" in caplog.text
    engine.close()
