"""Checks of a loaded model, for problems that tiny checkpoints do not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from aiochatstream.cli import model_checks
from aiochatstream.cli.check_texts import EN
from aiochatstream.cli.model_checks import LoadedModel, run_checks
from aiochatstream.engines.transformers import TransformersEngine, requirements
from aiochatstream.engines.transformers.cpu import dtype_trial
from aiochatstream.prompts import ChatPrompt
from aiochatstream.texts import EN as TEXTS
from tests.engines.tokenizers import BYTE_FALLBACK
from tests.engines.transformers.engine_harness import load_engine
from tests.engines.transformers.tiny_models import tiny
from tests.prompts.templates import FLAG_AND_EFFORT, with_template


@pytest.fixture
def load() -> Iterator[Callable[..., LoadedModel]]:
    """Yield a function that loads a tiny model of a family, with a chat template."""
    engines: list[TransformersEngine] = []

    def load_model(family: str = "Qwen2", template: str = FLAG_AND_EFFORT) -> LoadedModel:
        engines.append(load_engine(tiny(family, layers=1), with_template(template), slots=1, context_len=256))
        return LoadedModel(engines[-1], "some/model", ChatPrompt, EN, TEXTS)

    yield load_model
    for engine in engines:
        engine.close()


def test_a_model_that_cannot_be_batched_has_the_reason(load: Callable[..., LoadedModel]) -> None:
    model = load("Llama 4, with chunks")
    result = model_checks.check_batching(model)
    text = "answers are decoded one at a time, and serve runs 2"
    assert (result.status, result.text.partition(":")[0], result.values["slots"]) == ("warning", text, 2)
    assert model_checks.check_context(model).text == "2048 tokens"
    assert model_checks.check_speed(model).status == "ok"


def test_the_speed_of_dtypes_is_reported(load: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype_trial, "answer_seconds", lambda shapes, dtype: 1.26 if dtype == torch.float32 else 3.0)
    result = model_checks.check_speed(load())
    assert (result.status, "1.3 s in float32, 3.0 s in bfloat16" in result.text) == ("ok", True)
    assert result.values["bfloat16_seconds"] == 3.0


def test_a_slow_dtype_is_a_warning(load: Callable[..., LoadedModel]) -> None:
    model = load()
    model.engine.has_slow_dtype = True
    result = model_checks.check_speed(model)
    assert (result.status, "--dtype float32 is faster" in result.text) == ("warning", True)


def test_a_model_that_cannot_decode_is_broken(
    load: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load()

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("The model produced NaN logits.")

    monkeypatch.setattr(model.engine, "generate", fail)
    result = model_checks.check_speed(model)
    assert (result.status, result.text) == ("broken", "the model cannot decode: The model produced NaN logits.")


def test_streamed_text_that_differs_is_broken(
    load: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load()
    assert model_checks.check_streaming(model).status == "ok"
    monkeypatch.setattr(model.engine, "read", lambda prompt, ids: [])
    result = model_checks.check_streaming(model)
    assert (result.status, result.text) == (
        "broken",
        f'"" instead of "こんにちは、世界。" ({type(BYTE_FALLBACK).__name__})',
    )


def test_a_template_with_a_syntax_error_is_broken_and_the_other_checks_run(load: Callable[..., LoadedModel]) -> None:
    results = {result.name: result for result in run_checks(load(template="{% for %}"))}
    assert results["template"].status == "broken"
    assert "syntax error" in results["template"].text
    assert results["streaming"].status == "ok"


def test_a_template_without_users_is_broken(load: Callable[..., LoadedModel]) -> None:
    assert model_checks.check_template(load(template="Hello")).text == "messages of users are not rendered"


def test_an_answer_without_a_mark_at_its_end_is_a_warning(load: Callable[..., LoadedModel]) -> None:
    assert "ends them without a special token" in model_checks.check_answer(load()).text


@pytest.mark.parametrize(
    ("method", "missing", "text"),
    [
        (None, "", "nothing to install"),
        (None, "llguidance", "require: pip install 'aiochatstream[constrained]'"),
        ("mxfp4", "kernels", "to keep them in mxfp4: pip install kernels"),
    ],
)
def test_missing_packages_have_the_command_that_installs_them(
    load: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch, method: str | None, missing: str, text: str
) -> None:
    model = load()
    model.engine.quantization = method
    monkeypatch.setattr(
        requirements, "missing_packages", lambda packages: [name for name in packages if name == missing]
    )
    assert model_checks.check_packages(model).text.endswith(text)
