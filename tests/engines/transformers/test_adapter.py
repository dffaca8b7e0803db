"""Tests of adapters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from aiochatstream.engines.load_options import LoadOptions
from aiochatstream.engines.transformers import loading
from aiochatstream.extras import MissingExtra
from tests.engines.transformers.checkpoints import save_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft 0.21

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    """A LoRA of the model whose weights are not zero."""
    return save_lora(base, tmp_path / "adapter")


def save_lora(base: Path, folder: Path) -> Path:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(5)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(folder))
    return folder


def load(base: Path, adapter: Path) -> Any:
    options = LoadOptions(device="cpu", dtype="float32", adapter=adapter)
    return loading.loaders(str(base), options)[0]()


def test_an_adapter_is_merged_into_the_weights(base: Path, adapter: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base)
    merged = load(base, adapter)
    assert type(merged) is type(plain)
    names = {type(module).__name__ for module in merged.modules()}
    assert "Linear" in names
    with torch.inference_mode():
        difference = merged(IDS).logits - plain(IDS).logits
        expected = PeftModel.from_pretrained(plain, str(adapter))(IDS).logits
        assert difference.norm() > 0.01
        torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_tokenizer_of_an_adapter_replaces_that_of_the_model(
    base: Path, adapter: Path, tokenizer: Any, model_folder: str
) -> None:
    tokenizer.save_pretrained(base)
    changed = AutoTokenizer.from_pretrained(model_folder)
    changed.chat_template = "{{ messages[0].content }}"
    _, load_tokenizer = loading.loaders(str(base), LoadOptions(adapter=adapter))
    assert load_tokenizer().chat_template == tokenizer.chat_template
    changed.save_pretrained(adapter)
    assert load_tokenizer().chat_template == changed.chat_template


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (None, "adapter: there is no folder {adapter}."),
        ("adapter_config.json", "adapter: the folder {adapter} contains no adapter: it has no adapter_config.json."),
        (
            "adapter_model.safetensors",
            "adapter: the folder {adapter} contains no adapter: it has no adapter_model.safetensors.",
        ),
    ],
)
def test_a_folder_without_an_adapter_is_an_error_before_loading(
    tmp_path: Path, base: Path, missing: str | None, message: str
) -> None:
    folder = tmp_path / "empty"
    if missing is not None:
        folder.mkdir()
        for name in {"adapter_config.json", "adapter_model.safetensors"} - {missing}:
            (folder / name).write_text("{}")
    with pytest.raises(FileNotFoundError) as error:
        loading.loaders(str(base), LoadOptions(adapter=folder))
    assert str(error.value) == message.format(adapter=folder)


def test_without_peft_the_error_names_the_command(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"package peft is missing\. .*pip install 'aiochatstream\[adapter\]'$"):
        loading.loaders(str(base), LoadOptions(adapter=adapter))


def test_an_adapter_of_another_model_is_an_error_in_one_line(tmp_path: Path, base: Path) -> None:
    other = save_lora(save_model(tmp_path / "other", num_hidden_layers=1, hidden_size=32), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"^adapter: .* cannot be merged into Qwen2ForCausalLM \(.*size.*\)\.$"):
        load(base, other)


def test_an_adapter_that_cannot_be_merged_is_an_error(tmp_path: Path, base: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(ValueError, match=r"^adapter: .* cannot be merged into Qwen2ForCausalLM"):
        load(base, tmp_path / "prompt")


def test_the_folder_of_an_adapter_is_no_model(adapter: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"contains an adapter: specify its model, and .* --adapter\.$"):
        loading.locate(str(adapter))
