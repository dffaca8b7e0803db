"""Switches for thoughts, and other variables of chat templates."""

from __future__ import annotations

from typing import Any

import pytest

from aiochatstream import ChatPrompt, GenerationParams
from aiochatstream.errors import InvalidValue
from aiochatstream.params import ThinkingLevel
from aiochatstream.prompts import TemplateArguments
from aiochatstream.prompts.template_arguments import nearest_level
from tests.prompts.templates import DEEPSEEK, FLAG_AND_EFFORT, GPT_OSS, QWEN, TWO_EFFORTS, with_template

ALL = ("auto", "off", "low", "medium", "high")
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"


def arguments_of(template: Any) -> TemplateArguments:
    return TemplateArguments.of(with_template(template))


@pytest.mark.parametrize(
    ("template", "names", "levels", "distinct"),
    [
        (QWEN, ("enable_thinking", "language"), ALL, ("auto", "off", "high")),
        (DEEPSEEK, ("thinking",), ALL, ("auto", "off", "high")),
        (GPT_OSS, ("reasoning_effort",), ("auto", "low", "medium", "high"), ("auto", "low", "medium", "high")),
        (TWO_EFFORTS, ("reasoning_effort",), ("auto", "off", "high"), ("auto", "off", "high")),
        (FLAG_AND_EFFORT, ("enable_thinking", "reasoning_effort"), ALL, ALL),
        (PLAIN, (), (), ()),
        ("{% set thinking = true %}" + PLAIN + "{{ thinking }}", (), (), ()),
    ],
    ids=["Qwen3", "DeepSeek", "gpt-oss", "two efforts", "both", "none", "not a variable"],
)
def test_the_switch_is_the_variable_that_the_template_reads(
    template: str, names: tuple[str, ...], levels: tuple[str, ...], distinct: tuple[str, ...]
) -> None:
    arguments = arguments_of(template)
    assert (arguments.names, arguments.levels, arguments.distinct_levels()) == (names, levels, distinct)


def test_variables_of_the_server_cannot_be_set() -> None:
    template = (
        PLAIN + "{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ bos_token }}{{ eos_token }}{{ tokenize }}"
        "{{ custom }}{% for other in range(2) %}{{ other }}{% endfor %}{{ strftime_now('%Y') }}{{ namespace() }}"
    )
    assert arguments_of(template).names == ("custom",)


def test_several_templates_of_a_tokenizer_are_combined() -> None:
    templates = {"default": PLAIN + "{{ one }}", "tool_use": QWEN + "{{ tools }}"}
    arguments = arguments_of(templates)
    assert arguments.names == ("enable_thinking", "language", "one")
    assert arguments.flag == "enable_thinking"


@pytest.mark.parametrize(
    ("template", "thinking", "end"),
    [
        (QWEN, "off", "<think>\n\n</think>\n\n"),
        (QWEN, "low", "<|im_start|>assistant\n"),
        (QWEN, "auto", "<|im_start|>assistant\n"),
        (DEEPSEEK, "off", "</think>"),
        (DEEPSEEK, "auto", "</think>"),
        (DEEPSEEK, "medium", "<Assistant><think>"),
        (TWO_EFFORTS, "high", "Hello"),
        (FLAG_AND_EFFORT, "off", "Hello"),
        (FLAG_AND_EFFORT, "low", "<think>LOW"),
    ],
)
def test_a_level_sets_the_variables(template: str, thinking: ThinkingLevel, end: str) -> None:
    assert rendered(template, thinking=thinking).endswith(end)


def test_an_effort_is_a_word_of_the_prompt() -> None:
    assert "Reasoning: medium" in rendered(GPT_OSS)
    assert "Reasoning: high" in rendered(GPT_OSS, thinking="high")


def rendered(template: str, **params: Any) -> str:
    prompt = ChatPrompt()
    prompt.tokenizer, prompt.message = with_template(template), "Hello"
    arguments, values = TemplateArguments.of(prompt.tokenizer), GenerationParams(**params)
    arguments.check(values, "")
    prompt.template_kwargs = arguments.values(values)
    text = prompt.create_prompt()
    assert prompt.tokenizer.decode(prompt.encode()) == text
    return text


@pytest.mark.parametrize(
    ("template", "params", "sentence"),
    [
        (
            GPT_OSS,
            {"thinking": "off"},
            "params.thinking: must be 'auto', 'low', 'medium' or 'high' with this model.",
        ),
        (TWO_EFFORTS, {"thinking": "low"}, "params.thinking: must be 'auto', 'off' or 'high' with this model."),
        (
            PLAIN,
            {"thinking": "off"},
            "params.thinking: must be 'auto' with this model, whose prompts have no switch for thoughts.",
        ),
        (
            QWEN,
            {"chat_template_kwargs": {"language": "en", "messages": []}},
            "params.chat_template_kwargs.messages: unknown variable; the model's chat template accepts "
            "enable_thinking, language.",
        ),
        (
            PLAIN,
            {"chat_template_kwargs": {"x": 1}},
            "params.chat_template_kwargs.x: unknown variable; the model's chat template accepts no variables.",
        ),
    ],
)
def test_levels_and_variables_that_the_template_does_not_know_are_refused(
    template: str, params: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidValue) as error:
        arguments_of(template).check(GenerationParams(**params), "params.")
    assert error.value.detail == sentence


def test_variables_take_precedence_over_the_level() -> None:
    params = GenerationParams(thinking="off", chat_template_kwargs={"enable_thinking": True, "language": None})
    assert arguments_of(QWEN).values(params) == {"enable_thinking": True, "language": None}


def test_only_allowed_levels_are_distinct() -> None:
    assert arguments_of(QWEN).distinct_levels(("off", "low", "medium")) == ("off", "medium")
    assert arguments_of(GPT_OSS).distinct_levels(("off", "low", "medium")) == ("low", "medium")
    assert arguments_of(PLAIN).distinct_levels(("off", "low")) == ()


@pytest.mark.parametrize(
    ("level", "levels", "nearest"),
    [
        ("off", ("auto", "off", "high"), "off"),
        ("low", ("auto", "off", "high"), "high"),
        ("high", ("auto", "off"), "off"),
        ("off", ("auto", "low", "medium", "high"), "low"),
        ("high", ("low", "medium"), "medium"),
        ("medium", ("auto", "low", "medium", "high"), "medium"),
        ("high", (), None),
        ("off", ("auto",), None),
    ],
)
def test_the_nearest_level_thinks_as_much_if_possible(
    level: ThinkingLevel, levels: tuple[ThinkingLevel, ...], nearest: ThinkingLevel | None
) -> None:
    assert nearest_level(level, levels) == nearest
