"""Tests of the options for the prompt of a model."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from aiochatstream import ChatPrompt
from aiochatstream.console import prompt_options
from aiochatstream.prompts import CompletionsOnly
from aiochatstream.prompts.presets import FORMATS, PRESETS, PlainPrompt
from tests.engines.tokenizers import BYTE_FALLBACK
from tests.prompts.templates import QWEN, with_template


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    prompt_options.add_arguments(parser)
    return parser.parse_args(arguments)


def test_absent_options_are_none() -> None:
    assert vars(parse()) == dict.fromkeys(prompt_options.NAMES)


def test_variables_are_json() -> None:
    assert parse("--chat-template-kwargs", '{"a": [1, null]}').chat_template_kwargs == {"a": [1, None]}


@pytest.mark.parametrize(
    ("name", "prompt_class"),
    [*FORMATS.items(), ("PLAIN", PlainPrompt), ("dolly-v2-3b", FORMATS["dolly"]), *list(PRESETS.items())[:2]],
)
def test_a_name_selects_a_preset_for_every_model(name: str, prompt_class: type) -> None:
    for tokenizer in (None, BYTE_FALLBACK, with_template(QWEN)):
        assert prompt_options.prompt_class_of(name)(tokenizer) is prompt_class


def test_an_error_lists_all_formats() -> None:
    with pytest.raises(ValueError, match=f"^--prompt: must be one of {', '.join(FORMATS)}, or the name of a model"):
        prompt_options.prompt_class_of("nonsense")


def test_a_model_without_a_format_completes_texts_or_is_refused() -> None:
    tokenizer: Any = copy.copy(BYTE_FALLBACK)
    assert prompt_options.prompt_class_of(None, completes=True)(tokenizer) is CompletionsOnly
    with pytest.raises(ValueError, match=r"^This model has no chat template; choose a format with --prompt NAME \(pl"):
        prompt_options.prompt_class_of(None)(tokenizer)
    tokenizer.name_or_path = "databricks/dolly-v2-3b"
    assert prompt_options.prompt_class_of(None)(tokenizer) is FORMATS["dolly"]
    assert prompt_options.prompt_class_of(None)(with_template(QWEN)) is ChatPrompt


def test_a_template_file_replaces_the_template(tmp_path: Path) -> None:
    def load() -> PreTrainedTokenizerBase:
        return with_template(QWEN)

    assert prompt_options.with_chat_template(load, None) is load
    file = tmp_path / "template.jinja"
    file.write_text("日本語 {{ messages }}", "utf-8")
    assert prompt_options.with_chat_template(load, file)().chat_template == "日本語 {{ messages }}"
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"^--chat-template: .*template\.jinja must be UTF-8 text\."):
        prompt_options.with_chat_template(load, file)


def test_two_formats_are_refused(tmp_path: Path) -> None:
    prompt_options.check_combination("plain", None)
    prompt_options.check_combination(None, tmp_path)
    with pytest.raises(ValueError, match=r"^--prompt: must not be combined with --chat-template\."):
        prompt_options.check_combination("plain", tmp_path)
