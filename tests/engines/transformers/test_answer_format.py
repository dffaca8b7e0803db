"""Tests of the format of answers: control tokens, readers, and the tokens of marks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from aiochatstream import Prompt
from aiochatstream.engines.transformers.answer_format import PREFIX_TOKENS, AnswerFormat
from aiochatstream.engines.transformers.response_reader import ContentText, Part, Thought
from aiochatstream.engines.transformers.response_templates import TEMPLATES
from tests.engines.tokenizers import BYTE_FALLBACK, SPACE_MOVING
from tests.engines.transformers.scripted_answers import HARMONY, MARKED, QWEN, QWEN_PROMPT, ids_of


def byte_fallback_with_marks() -> Any:
    tokenizer = copy.deepcopy(BYTE_FALLBACK)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=True)])
    return tokenizer


MARKED_BYTE_FALLBACK = byte_fallback_with_marks()
TOKENIZERS = {"fast": MARKED, "byte fallback": MARKED_BYTE_FALLBACK, "in Python": SPACE_MOVING}


def parts_of(tokenizer: Any, ids: list[int], prompt: list[int], *, cut_off: bool = False) -> list[Part]:
    """Return the parts of the tokens of an answer in Qwen3's format, joined."""
    reader = AnswerFormat(tokenizer, QWEN).reader(Prompt([], prompt))
    parts: list[Part] = []
    for step in [*(reader.step(token_id) for token_id in ids), reader.cut_off() if cut_off else reader.end()]:
        for part in step:
            match parts, part:
                case [*_, ContentText(text)], ContentText(more):
                    parts[-1] = ContentText(text + more)
                case [*_, Thought(text)], Thought(more):
                    parts[-1] = Thought(text + more)
                case _:
                    parts.append(part)
    return [part for part in parts if part.text]


def test_control_tokens_are_special_tokens_and_added_tokens_with_punctuation() -> None:
    tokenizer = copy.deepcopy(MARKED)
    tokenizer.add_tokens([AddedToken("word", special=False), AddedToken("  ", special=False)])
    names = AnswerFormat(tokenizer, QWEN).control_tokens
    assert {"<|im_end|>", "<think>", "</tool_call>"} < set(names.values())
    assert not {"word", "  "} & set(names.values())
    assert all(tokenizer.convert_ids_to_tokens(id_) == name for id_, name in names.items())


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_marks_are_tokens_of_every_kind_of_tokenizer(tokenizer: Any) -> None:
    answer_format = AnswerFormat(tokenizer, QWEN)
    begin, end = (tokenizer.convert_tokens_to_ids(mark) for mark in ("<think>", "</think>"))
    assert answer_format.ids_of("<think>") == [begin]
    close_ids = answer_format.ids_of(answer_format.template.close_thinking)
    assert end in close_ids
    words = [tokenizer.convert_tokens_to_ids("a"), tokenizer.convert_tokens_to_ids("b")]
    if tokenizer is SPACE_MOVING:
        words = list(tokenizer.convert_tokens_to_ids(["▁a", "b"]))
    for close in ([end], close_ids):
        assert parts_of(tokenizer, [begin, words[0], *close, words[1]], []) == [Thought("a"), ContentText("b")]


def test_a_template_without_thoughts_has_no_tokens_for_them() -> None:
    answer_format = AnswerFormat(MARKED, TEMPLATES["hermes"])
    assert answer_format.ids_of(answer_format.template.open_thinking) == []
    assert answer_format.ids_of(answer_format.template.close_thinking) == []


@settings(max_examples=300, deadline=None)
@given(
    thought=st.lists(st.integers(2, len(SPACE_MOVING.WORDS) + 1), max_size=20),
    content=st.lists(st.integers(2, len(SPACE_MOVING.WORDS) + 1), max_size=20),
)
def test_parts_of_a_tokenizer_that_moves_spaces_are_those_of_the_decoded_text(
    thought: list[int], content: list[int]
) -> None:
    begin, end = SPACE_MOVING.convert_tokens_to_ids(list(SPACE_MOVING.MARKS))
    ids = [begin, *thought, end, *content]
    thinking, _, text = SPACE_MOVING.decode(ids).removeprefix("<think>").partition("</think>")
    expected: list[Part] = [Thought(thinking.strip()), ContentText(text.lstrip(" \n"))]
    actual = parts_of(SPACE_MOVING, ids, [])
    assert [part for part in actual if part.text.strip()] == [part for part in expected if part.text.strip()]


def test_pending_spaces_are_part_of_an_answer_that_is_cut_off() -> None:
    ids = SPACE_MOVING.convert_tokens_to_ids(["b", "▁", "<0xE6>"])
    assert parts_of(SPACE_MOVING, ids, [], cut_off=True) == [ContentText("b ")]


def test_the_answer_begins_in_the_region_in_which_a_long_prompt_ends() -> None:
    prompt = ids_of("x" * 3 * PREFIX_TOKENS + QWEN_PROMPT)
    assert parts_of(MARKED, ids_of("a</think>b"), ids_of("<think>") + prompt) == [ContentText("a</think>b")]
    assert parts_of(MARKED, ids_of("a</think>b"), prompt + ids_of("<think>")) == [Thought("a"), ContentText("b")]


def test_special_tokens_that_are_no_marks_are_not_shown() -> None:
    assert parts_of(MARKED, ids_of("a<|im_start|>b<|channel|>c<tool_call>d"), []) == [ContentText("abc<tool_call>d")]


@pytest.mark.parametrize("spec", [QWEN, HARMONY])
def test_thinking_tokens_include_the_marks(spec: dict[str, Any]) -> None:
    answer_format = AnswerFormat(MARKED, spec)
    opening, closing = answer_format.template.open_thinking, answer_format.template.close_thinking
    assert opening is not None
    assert closing is not None
    reader = answer_format.reader(Prompt([], []))
    for token_id in ids_of(f"{opening}why"):
        reader.step(token_id)
    assert reader.in_thought
    assert reader.thinking_tokens == 4  # the open mark ends with its last token
    for token_id in ids_of(closing.rstrip()):
        reader.step(token_id)
    assert not reader.in_thought
    assert reader.thinking_tokens == 4 + len(ids_of(closing.rstrip()))
