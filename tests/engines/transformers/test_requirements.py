"""Tests of the packages that checkpoints require, and of the tokenizers that the extra ``japanese`` reads."""

from __future__ import annotations

from collections.abc import Callable
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from transformers import GPTNeoXConfig, LlamaConfig

from aiochatstream.engines.load_options import LoadOptions
from aiochatstream.engines.transformers import loading, requirements
from aiochatstream.extras import MissingExtra
from tests.engines.transformers.checkpoints import (
    edit_json,
    save_model,
    save_rinna_tokenizer,
    save_sarashina_tokenizer,
)
from tests.processes import ROOT

CPU = LoadOptions(device="cpu", dtype="float32")


@pytest.fixture
def hide_package(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes a package seem not installed."""
    hidden: set[str] = set()
    version = metadata.version

    def visible_version(name: str) -> str:
        if name in hidden:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", visible_version)
    return hidden.add


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"load_in_8bit": True, "quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}, "mxfp4"),
    ],
)
def test_the_method_is_read_from_the_configuration(config: dict[str, Any], method: str | None) -> None:
    assert requirements.quantization_method(config) == method


@pytest.mark.parametrize(
    ("quantization", "sentence"),
    [
        ({"quant_method": "awq"}, r"\(awq\), which requires gptqmodel\. Install with: pip install gptqmodel$"),
        ({"quant_method": "gptq"}, r"which requires gptqmodel and optimum\. Install with: pip install gptqmodel optim"),
        ({"load_in_4bit": True}, r"\(bitsandbytes\), .* pip install bitsandbytes$"),
        ({"quant_method": "torchao"}, r"pip install torchao$"),
        ({"quant_method": "compressed-tensors"}, r"pip install compressed-tensors$"),
    ],
)
def test_a_quantised_checkpoint_is_not_read_without_its_packages(
    tmp_path: Path, hide_package: Callable[[str], None], quantization: dict[str, Any], sentence: str
) -> None:
    for package in ("gptqmodel", "optimum", "bitsandbytes", "torchao", "compressed-tensors"):
        hide_package(package)
    edit_json(tmp_path / "config.json", model_type="qwen2", quantization_config=quantization)  # and no weights
    load, _ = loading.loaders(str(tmp_path), CPU)
    with pytest.raises(MissingExtra, match=sentence):
        load()


def test_only_missing_packages_are_named(tmp_path: Path, hide_package: Callable[[str], None]) -> None:
    assert requirements.missing_packages(["torch", "no-package-of-this-name"]) == ["no-package-of-this-name"]


@pytest.mark.parametrize("save", [save_rinna_tokenizer, save_sarashina_tokenizer])
@pytest.mark.parametrize("package", ["sentencepiece", "protobuf"])
def test_a_sentencepiece_model_without_its_packages_is_an_error_with_the_command(
    tmp_path: Path, hide_package: Callable[[str], None], save: Callable[[Path], Path], package: str
) -> None:
    hide_package(package)
    edit_json(save(tmp_path) / "config.json", model_type="gpt_neox")
    _, load = loading.loaders(str(tmp_path), CPU)
    with pytest.raises(MissingExtra, match=rf"requires {package}\. .*pip install 'aiochatstream\[japanese\]'$"):
        load()


def test_a_tokenizer_json_needs_no_sentencepiece(
    tmp_path: Path, hide_package: Callable[[str], None], tokenizer: Any
) -> None:
    hide_package("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"")
    tokenizer.save_pretrained(save_model(tmp_path))
    _, load = loading.loaders(str(tmp_path), CPU)
    assert load()("Hello")["input_ids"] == tokenizer("Hello")["input_ids"]


@pytest.mark.parametrize(
    ("save", "config"), [(save_rinna_tokenizer, GPTNeoXConfig), (save_sarashina_tokenizer, LlamaConfig)]
)
def test_sentencepiece_models_are_loaded_with_the_extra(
    tmp_path: Path, save: Callable[[Path], Path], config: Callable[..., Any]
) -> None:
    save_model(save(tmp_path), config)
    _, load = loading.loaders(str(tmp_path), CPU)
    tokenizer = load()
    for text in ("今日は良い天気です", "Hello world"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_extra_contains_the_packages() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extra = setup["options.extras_require"]["japanese"]
    assert all(package in extra for package in requirements.SENTENCEPIECE_PACKAGES)
