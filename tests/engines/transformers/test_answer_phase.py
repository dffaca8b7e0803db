"""Tests of budgets for thoughts, and of constraints that begin after them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from aiochatstream import Constraint, Delta, GenerationParams, Prompt, TokenSampler
from aiochatstream.engines.transformers.answer_format import AnswerFormat
from aiochatstream.engines.transformers.answer_phase import AnswerPhase
from aiochatstream.engines.transformers.grammars import Matcher
from tests.engines.transformers.engine_harness import load_engine, tokens_of
from tests.engines.transformers.scripted_answers import (
    ENDS,
    HARMONY_PROMPT,
    MARKED,
    QWEN,
    QWEN_PROMPT,
    ScriptedModel,
    ids_of,
    parts_of,
    thinking_tokens,
)
from tests.engines.transformers.tiny_models import tiny
from tests.helpers import PATIENCE

THINKING_PROMPT = f"{QWEN_PROMPT}<think>\n"
CLOSE = "\n</think>\n\n"
HARMONY_CLOSE = "<|end|><|start|>assistant<|channel|>final<|message|>"
YES_OR_NO = Constraint("regex", "yes|no")


def text_of(deltas: Sequence[Delta]) -> str:
    """Return the text of all tokens, with marks."""
    return str(MARKED.decode(tokens_of(list(deltas))))


@pytest.mark.parametrize(
    ("prompt", "budget", "written", "text"),
    [
        (THINKING_PROMPT, 5, "abcdefgh<|im_end|>", f"abcde{CLOSE}fgh<|im_end|>"),
        (THINKING_PROMPT, 0, "Hi<|im_end|>", f"{CLOSE}Hi<|im_end|>"),
        (THINKING_PROMPT, 5, "abc</think>Hi<|im_end|>", "abc</think>Hi<|im_end|>"),
        (QWEN_PROMPT, 3, "<think>abcd<|im_end|>", f"<think>ab{CLOSE}cd<|im_end|>"),
        (QWEN_PROMPT, 0, "<think>Hi<|im_end|>", f"<think>{CLOSE}Hi<|im_end|>"),
        (QWEN_PROMPT, 3, "Hello<|im_end|>", "Hello<|im_end|>"),
        (THINKING_PROMPT, 2, "ab</think>Hi<think>x<|im_end|>", f"ab{CLOSE}</think>Hi<think>{CLOSE}x<|im_end|>"),
        (THINKING_PROMPT, None, "abcdefgh<|im_end|>", "abcdefgh<|im_end|>"),
    ],
)
def test_a_thought_that_reaches_its_budget_is_closed(
    qwen: ScriptedModel, prompt: str, budget: int | None, written: str, text: str
) -> None:
    assert text_of(qwen.answer(written, prompt, max_thinking_tokens=budget)) == text


def test_the_tokens_that_close_a_thought_are_tokens_of_the_thought_and_not_shown(qwen: ScriptedModel) -> None:
    deltas = qwen.answer("abcdef<|im_end|>", THINKING_PROMPT, max_thinking_tokens=4)
    assert parts_of(deltas) == [("thinking", "abcd"), ("text", "ef")]
    assert thinking_tokens(deltas) == 4 + len(ids_of(CLOSE.rstrip()))


def test_harmonys_thoughts_are_closed_by_the_header_of_the_final_channel(harmony: ScriptedModel) -> None:
    deltas = harmony.answer(
        "<|channel|>analysis<|message|>abcdef<|return|>", HARMONY_PROMPT, max_thinking_tokens=3, logprobs=0
    )
    assert text_of(deltas) == f"<|channel|>analysis<|message|>ab{HARMONY_CLOSE}cdef<|return|>"
    assert parts_of(deltas) == [("thinking", "ab"), ("text", "cdef")]
    assert thinking_tokens(deltas) == 3 + len(ids_of(HARMONY_CLOSE))


def test_tokens_that_close_a_thought_have_logprobs_and_count_for_the_maximum_length(qwen: ScriptedModel) -> None:
    deltas = qwen.answer("abcdef", THINKING_PROMPT, max_thinking_tokens=2, max_new_tokens=8, logprobs=1)
    assert text_of(deltas) == f"ab{CLOSE}cd"
    logprobs = [logprob for delta in deltas for logprob in delta.logprobs]
    assert [logprob.token_id for logprob in logprobs] == tokens_of(deltas)
    assert all(logprob.logprob < 0 for logprob in logprobs)
    assert deltas[-1].finish_reason == "length"


def test_tokens_that_end_while_a_thought_is_closed_end_in_the_thought(qwen: ScriptedModel) -> None:
    deltas = qwen.answer("abcdef", THINKING_PROMPT, max_thinking_tokens=2, max_new_tokens=3)
    assert parts_of(deltas) == [("thinking", "ab\n")]
    assert deltas[-1].finish_reason == "thinking_length"


def test_a_closed_thought_is_in_the_prefix_cache() -> None:
    model = ScriptedModel()
    deltas = model.answer("abcdef<|im_end|>", THINKING_PROMPT, max_thinking_tokens=2)
    whole = THINKING_PROMPT + text_of(deltas)
    again = model.answer("<|im_end|>", f"{whole}\n<|im_start|>user\n")
    assert sum(delta.cached_tokens for delta in again) >= len(ids_of(whole)) - 1
    model.engine.close()


class LetterSampler(TokenSampler):
    """A sampler that always returns ``a``, even if it is excluded."""

    def sample(self, logits: torch.Tensor, token_ids: Any, params: Any) -> list[int]:
        return ids_of("a") * len(logits)


def test_a_custom_sampler_cannot_continue_a_thought_beyond_its_budget() -> None:
    engine = load_engine(tiny(layers=1), MARKED, token_sampler=LetterSampler(), response_template=QWEN)
    params = GenerationParams(max_new_tokens=12, max_thinking_tokens=3)
    deltas = list(engine.generate(Prompt([], ids_of(THINKING_PROMPT)), params))
    assert text_of(deltas) == f"aaa{CLOSE}aaaaa"
    engine.close()


@pytest.mark.parametrize("family", ["Qwen2", "Mamba"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.5},
        {"temperature": 1.0, "top_k": 3, "top_p": 0.5, "min_p": 0.2},
        {"temperature": 1.0, "typical_p": 0.5, "top_p": 0.9},
        {"temperature": 1.0, "repetition_penalty": 2.0, "no_repeat_ngram_size": 1, "presence_penalty": 2.0},
        {"temperature": 1.0, "logit_bias": dict.fromkeys(ids_of("</think>\n"), -100.0)},
    ],
    ids=str,
)
def test_thoughts_are_closed_with_any_sampling_parameters(family: str, options: dict[str, Any]) -> None:
    engine = load_engine(tiny(family, layers=1), MARKED, response_template=QWEN)
    params = GenerationParams(**options, max_new_tokens=20, max_thinking_tokens=3, seed=5, ignore_eos=True)
    answers = [tokens_of(list(engine.generate(Prompt([], ids_of(THINKING_PROMPT)), params))) for _ in range(2)]
    assert answers[0] == answers[1]
    close = ids_of(CLOSE)
    assert answers[0][3 : 3 + len(close)] == close
    free = params.model_copy(update={"max_thinking_tokens": None})
    assert tokens_of(list(engine.generate(Prompt([], ids_of(THINKING_PROMPT)), free)))[:3] == answers[0][:3]
    engine.close()


def test_a_budget_does_not_affect_other_rows(qwen: ScriptedModel) -> None:
    start = threading.Barrier(4)

    def answer(budget: int | None) -> str:
        start.wait(PATIENCE)
        return text_of(qwen.answer("abcdefgh<|im_end|>", THINKING_PROMPT, max_thinking_tokens=budget))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(answer, [None, 3, None, 6])) == [
            "abcdefgh<|im_end|>",
            f"abc{CLOSE}defgh<|im_end|>",
            "abcdefgh<|im_end|>",
            f"abcdef{CLOSE}gh<|im_end|>",
        ]


def end_of(text: str, start: str) -> str:
    """Return what follows ``start`` and precedes the end-of-sequence token."""
    assert text.startswith(start)
    (end,) = (end for end in ENDS if text.endswith(end))
    return text[len(start) : -len(end)]


@pytest.mark.parametrize(
    ("prompt", "written", "before", "params"),
    [
        (THINKING_PROMPT, "why</think>", "why</think>\n\n", {}),
        (THINKING_PROMPT, "why", f"wh{CLOSE}", {"max_thinking_tokens": 2}),
        (THINKING_PROMPT, "", CLOSE, {"max_thinking_tokens": 0}),
        (QWEN_PROMPT, "<think>why</think>", "<think>why</think>\n\n", {}),
        (QWEN_PROMPT, "<think>", "", {"thinking": "off"}),
        (QWEN_PROMPT, "<think>", "", {"max_thinking_tokens": 0}),
        (f"{THINKING_PROMPT}\n</think>\n\n", "", "", {}),
    ],
)
def test_a_constraint_begins_after_the_thought(
    qwen: ScriptedModel, prompt: str, written: str, before: str, params: dict[str, Any]
) -> None:
    deltas = qwen.answer(f"{written}maybe", prompt, constraint=YES_OR_NO, **params)
    assert end_of(text_of(deltas), before) in ("yes", "no")
    assert parts_of(deltas)[-1] in (("text", "yes"), ("text", "no"))


def test_a_constrained_answer_cannot_end_within_its_thought(qwen: ScriptedModel) -> None:
    deltas = qwen.answer("why<|im_end|></think>", THINKING_PROMPT, constraint=YES_OR_NO)
    assert re.fullmatch(r"why.</think>\n\n(yes|no)(<\|im_end\|>|<\|return\|>|<\|call\|>)", text_of(deltas), re.DOTALL)
    assert deltas[-1].finish_reason == "stop"


def test_a_schema_holds_after_a_thought(qwen: ScriptedModel) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    constraint = Constraint.json_schema(schema)
    thought, (kind, text) = parts_of(qwen.answer("why</think>maybe", THINKING_PROMPT, constraint=constraint))
    assert (thought, kind) == (("thinking", "why"), "text")
    assert json.loads(text) in ({"ok": True}, {"ok": False})


@pytest.mark.parametrize(
    ("written", "before"),
    [
        ("awhy<|end|>", f"<|channel|>analysis<|message|>why{HARMONY_CLOSE}"),  # a: the only choice in the mark
        ("f", "<|channel|>final<|message|>"),
    ],
)
def test_a_constraint_begins_in_harmonys_final_channel(harmony: ScriptedModel, written: str, before: str) -> None:
    deltas = harmony.answer(f"{written}maybe", HARMONY_PROMPT, constraint=YES_OR_NO)
    assert end_of(text_of(deltas), before) in ("yes", "no")
    assert parts_of(deltas)[-1] in (("text", "yes"), ("text", "no"))


def test_a_constraint_holds_from_the_beginning_of_a_plain_text(qwen: ScriptedModel) -> None:
    deltas = qwen.answer("<think>", THINKING_PROMPT, chat=False, constraint=YES_OR_NO)
    assert end_of(text_of(deltas), "") in ("yes", "no")


def test_only_content_waits_for_the_mask_of_its_grammar() -> None:
    """The first token may begin the content instead of a thought, so its mask is needed."""
    answer_format = AnswerFormat(MARKED, QWEN)
    grammar = SimpleNamespace(ready=False, advance=lambda token: None, allows=lambda token: False)
    params = GenerationParams(max_new_tokens=9)
    phase = AnswerPhase(
        answer_format,
        Prompt([], ids_of(QWEN_PROMPT)),
        params,
        cast(Matcher, grammar),
        ids_of("<|im_end|>"),
        len(MARKED),
    )
    assert not phase.ready
    grammar.ready = True
    assert phase.ready
    grammar.ready = False
    readiness = []
    for token in ids_of("<think>ab</think>\n\n"):
        phase.advance(token)
        readiness.append(phase.ready)
    assert readiness == [True] * (len(readiness) - 1) + [False]
