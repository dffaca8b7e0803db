"""The choice of a response template, and the templates in transformers' own parser."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_parsing.response_parser import parse_response

from aiochatstream.engines.transformers.response_templates import TEMPLATES, find_response_template

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def tokenizer_with(tokens: tuple[str, ...], chat_template: Any) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.mark.parametrize(
    ("model_type", "tokens", "chat_template", "name"),
    [
        ("qwen2", ("<tool_call>",), "...<tool_call>...", "qwen3"),
        ("qwen2", (), CHATML, "qwen3"),
        ("qwen3_moe", ("<think>",), "...<tool_call>...</think>", "qwen3"),
        ("qwen3_moe", ("<think>",), "<tool_call>\n<function=example>", "qwen3_5"),
        ("qwen3_5_text", ("<think>",), None, "qwen3_5"),
        ("qwen3", ("<think>",), {"default": "</think>", "tool_use": "<function= <tool_call>"}, "qwen3_5"),
        ("gemma4_text", ("<|channel>", "<|tool_call>"), CHATML, "gemma4"),
        ("gemma3_text", ("<start_function_call>",), CHATML, "functiongemma"),
        ("gemma3_text", (), CHATML, None),
        ("gpt_oss", ("<|channel|>", "<|message|>"), CHATML, "harmony"),
        ("llama", ("<|channel|>", "<|message|>"), CHATML, "harmony"),
        ("mistral", ("[TOOL_CALLS]", "[ARGS]"), CHATML, "mistral"),
        ("mistral", ("[TOOL_CALLS]",), CHATML, "mistral_list"),
        ("mistral", (), CHATML, None),
        ("llama", ("<|python_tag|>",), CHATML, "llama3"),
        ("llama", ("<|python_tag|>",), "...</think>", "llama3_thinking"),
        ("llama", ("<|python_tag|>",), "...<tool_call>", "hermes"),
        ("llama", (), "...<tool_call>...</think>", "qwen3"),
        ("deepseek_v3", ("<｜tool▁call▁begin｜>",), CHATML, "deepseek"),
        ("qwen2", ("<｜tool▁call▁begin｜>",), CHATML, "deepseek"),
        ("llama", ("<｜tool▁call▁begin｜>", "<|python_tag|>"), CHATML, "deepseek"),
        ("llama", (), "...</think>", "thinking"),
        ("llama", ("<|im_start|>", "<|im_end|>"), CHATML, None),
        ("llama", (), None, None),
    ],
)
def test_type_tokens_and_chat_template_determine_the_template(
    model_type: str, tokens: tuple[str, ...], chat_template: Any, name: str | None
) -> None:
    template = find_response_template(model_type, tokenizer_with(tokens, chat_template))
    assert template is (None if name is None else TEMPLATES[name])


@pytest.mark.parametrize(
    ("name", "prefix", "response", "expected"),
    [
        (
            "qwen3",
            "<|im_start|>assistant\n",
            '<think>\na\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
            ["a", None, {"x": 1}],
        ),
        (
            "qwen3_5",
            "<|im_start|>assistant\n<think>\n",
            "a\n</think>\n\n<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
            ["a", None, {"x": "1"}],
        ),
        (
            "gemma4",
            "<|turn>model\n",
            '<|channel>thought\na<channel|>b<|tool_call>call:f{x:<|"|>1<|"|>}<tool_call|>',
            ["a", "b", {"x": "1"}],
        ),
        (
            "functiongemma",
            "<start_of_turn>model\n",
            "<start_function_call>call:f{x:<escape>1<escape>}<end_function_call>",
            [None, None, {"x": "1"}],
        ),
        (
            "harmony",
            "<|start|>assistant",
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=functions.f "
            '<|constrain|>json<|message|>{"x": 1}<|call|><|start|>assistant<|channel|>final<|message|>b<|return|>',
            ["a", "b", {"x": 1}],
        ),
        ("mistral", "[/INST]", '[THINK]a[/THINK]b[TOOL_CALLS]f[ARGS]{"x": 1}', ["a", "b", {"x": 1}]),
        (
            "llama3",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            '<|python_tag|>{"name": "f", "arguments": {"x": 1}}',
            [None, None, {"x": 1}],
        ),
        (
            "deepseek",
            "<｜Assistant｜><think>\n",
            "a\n</think>\n\nb<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
            '{"x": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            ["a", "b", {"x": 1}],
        ),
    ],
)
def test_transformers_reads_the_same_format(name: str, prefix: str, response: str, expected: list[Any]) -> None:
    message = parse_response(response, TEMPLATES[name], prefix=prefix)
    call = message["tool_calls"][0] if isinstance(message["tool_calls"], list) else message["tool_calls"]
    assert [message.get("thinking"), message.get("content"), call["function"]["arguments"]] == expected


def test_transformers_reads_lists_of_calls() -> None:
    response = '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]'
    calls = parse_response(response, TEMPLATES["mistral_list"], prefix="[/INST]")["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["f", "g"]


def test_the_small_model_has_no_template(tokenizer: Any) -> None:
    assert find_response_template("llama", tokenizer) is None
