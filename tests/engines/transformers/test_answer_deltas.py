"""Tests of answers with thoughts and tool calls, from the model's tokens to deltas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiochatstream import GenerationParams, Prompt
from tests.engines.transformers.engine_harness import tokens_of
from tests.engines.transformers.scripted_answers import (
    HARMONY,
    HARMONY_PROMPT,
    MARKED,
    QWEN,
    QWEN_PROMPT,
    TOOL,
    ScriptedModel,
    ids_of,
    parts_of,
    thinking_tokens,
)

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "日</tool_call>"}}\n</tool_call>'


def test_thoughts_content_and_calls_are_separate_deltas_in_order(qwen: ScriptedModel) -> None:
    text = f"<think>\n考え 🍣\n</think>\n\nHello 日本\n{CALL}<|im_end|>"
    deltas = qwen.answer(text, tools=[TOOL])
    assert parts_of(deltas) == [("thinking", "考え 🍣"), ("text", "Hello 日本"), ("call", "f")]
    assert tokens_of(deltas) == ids_of(text)
    assert thinking_tokens(deltas) == len(ids_of("<think>\n考え 🍣\n</think>"))
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
    assert deltas[-1].finish_reason == "stop"
    (call,) = (call for delta in deltas for call in delta.tool_calls)
    assert json.loads(call.arguments) == {"a": "日</tool_call>"}
    assert call.text.strip() == CALL


def test_a_thought_may_begin_in_the_prompt(qwen: ScriptedModel) -> None:
    deltas = qwen.answer("why</think>Hi<|im_end|>", f"{QWEN_PROMPT}<think>\n")
    assert parts_of(deltas) == [("thinking", "why"), ("text", "Hi")]
    assert thinking_tokens(deltas) == 4


def test_a_continued_answer_is_content_after_the_thought_of_its_beginning(qwen: ScriptedModel) -> None:
    deltas = qwen.answer(" you<|im_end|>", f"{QWEN_PROMPT}<think>\nwhy\n</think>\n\nHow are", continued=True)
    assert parts_of(deltas) == [("text", " you")]


def test_text_that_looks_like_a_mark_is_text(qwen: ScriptedModel) -> None:
    characters = [MARKED.convert_tokens_to_ids(character) for character in "<think>"]
    assert parts_of(qwen.answer([*characters, *ids_of("a<|im_end|>")])) == [("text", "<think>a")]


def test_a_plain_text_has_no_thoughts_and_no_calls(qwen: ScriptedModel) -> None:
    text = f"<think>why</think>{CALL}"
    deltas = qwen.answer(f"{text}<|im_end|>", tools=[TOOL], chat=False)
    assert parts_of(deltas) == [("text", text)]
    assert thinking_tokens(deltas) == 0


@pytest.mark.parametrize(
    ("count", "parts", "reason"),
    [
        (4, [("thinking", "why")], "thinking_length"),
        (5, [("thinking", "why")], "length"),
        (7, [("thinking", "why"), ("text", "Hi")], "length"),
    ],
)
def test_the_finish_reason_at_the_maximum_length_depends_on_the_region(
    qwen: ScriptedModel, count: int, parts: Any, reason: str
) -> None:
    deltas = qwen.answer("<think>why</think>Hi there", max_new_tokens=count)
    assert parts_of(deltas) == parts
    assert deltas[-1].finish_reason == reason


def test_an_incomplete_call_is_content(qwen: ScriptedModel) -> None:
    deltas = qwen.answer(CALL, tools=[TOOL], max_new_tokens=30)
    assert parts_of(deltas) == [("text", MARKED.decode(ids_of(CALL)[:30]))]
    assert deltas[-1].finish_reason == "length"


def test_stop_strings_hold_for_content_only(qwen: ScriptedModel) -> None:
    text = f"<think>STOP <|im_start|></think>\n\none ST{CALL}OP two STOP three"
    deltas = qwen.answer(text, tools=[TOOL], stop=("STOP", "<|im_start|>"))
    assert parts_of(deltas) == [("thinking", "STOP"), ("text", "one ST"), ("call", "f"), ("text", "OP two ")]
    assert deltas[-1].finish_reason == "stop"


def test_a_stop_string_that_is_a_special_token_ends_the_content(qwen: ScriptedModel) -> None:
    deltas = qwen.answer("<think><|im_start|>a</think>b<|im_start|>c", stop=("<|im_start|>",))
    assert parts_of(deltas) == [("thinking", "a"), ("text", "b")]
    assert deltas[-1].finish_reason == "stop"


def test_each_token_has_logprobs_in_one_delta(qwen: ScriptedModel) -> None:
    text = f"<think>a</think>b{CALL}<|im_end|>"
    deltas = qwen.answer(text, tools=[TOOL], logprobs=1)
    assert [logprob.token_id for delta in deltas for logprob in delta.logprobs] == ids_of(text)
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)


def test_closing_the_answer_within_a_thought_cancels_it(qwen: ScriptedModel) -> None:
    params = GenerationParams(max_new_tokens=100, seed=qwen.script.add("<think>why why why"))
    steps = qwen.engine.generate(Prompt([], ids_of(QWEN_PROMPT)), params)
    while not next(steps).thinking:
        pass
    steps.close()
    assert parts_of(qwen.answer("Hi<|im_end|>")) == [("text", "Hi")]


def test_harmonys_channels_are_thoughts_content_and_calls(harmony: ScriptedModel) -> None:
    header = "<|end|><|start|>assistant<|channel|>final<|message|>"
    deltas = harmony.answer(f"<|channel|>analysis<|message|>why{header}Hi<|return|>", HARMONY_PROMPT)
    assert parts_of(deltas) == [("thinking", "why"), ("text", "Hi")]
    assert thinking_tokens(deltas) == 4 + len(ids_of(header))
    assert deltas[-1].finish_reason == "stop"
    call = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
    deltas = harmony.answer(call, HARMONY_PROMPT, [TOOL])
    assert parts_of(deltas) == [("call", "f")]
    assert deltas[-1].finish_reason == "stop"


def test_tokens_that_end_between_a_thought_and_the_content_end_in_the_thought(harmony: ScriptedModel) -> None:
    text = "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final"
    deltas = harmony.answer(text, HARMONY_PROMPT, max_new_tokens=len(ids_of(text)))
    assert parts_of(deltas)[0][0] == "thinking"
    assert len(parts_of(deltas)) == 1
    assert deltas[-1].finish_reason == "thinking_length"


def test_the_template_is_the_applications_or_the_tokenizers_or_that_of_the_family(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert template_of(QWEN) is QWEN
    assert template_of(None) == HARMONY  # the vocabulary has its marks
    monkeypatch.setattr(MARKED, "response_template", QWEN, raising=False)
    assert template_of(None) is QWEN
    assert template_of(HARMONY) is HARMONY


def template_of(template: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the template of an engine with the argument ``template``."""
    model = ScriptedModel(template)
    model.engine.close()
    return model.engine.response_template


@pytest.mark.parametrize(
    "template",
    [{}, {"fields": {"content": {}}}, {"start_anchor": "a", "fields": {"content": {"open_pattern": "("}}}],
)
def test_an_invalid_template_is_an_error_at_load_that_names_it(template: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^response_template: "):
        ScriptedModel(template)
