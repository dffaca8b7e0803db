"""Tests for the bodies of requests."""

from __future__ import annotations

from typing import Any

import pytest

from aiochatstream import GenerationParams, Prompt
from aiochatstream.engines.upstream.dialects import DIALECTS, Dialect
from aiochatstream.engines.upstream.request_body import cache_salt, check_params, request_of
from aiochatstream.errors import BadRequest, InvalidValue
from aiochatstream.params import MAX_NEW_TOKENS

BY_NAME = {dialect.name: dialect for dialect in DIALECTS}
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def body(
    dialect: str, params: GenerationParams | None = None, prompt: Prompt | None = None, **more: Any
) -> dict[str, Any]:
    params, prompt = params or GenerationParams(), prompt or Prompt(MESSAGES, [])
    return request_of(prompt, params, BY_NAME[dialect], **more)[1]


def test_only_parameters_that_somebody_has_set_are_sent() -> None:
    assert body("vllm") == {**STREAM, "max_tokens": 256, "messages": MESSAGES, "return_token_ids": True}
    assert body("openai-compatible") == {**STREAM, "max_tokens": 256, "messages": MESSAGES}
    assert body("openai") == {**STREAM, "max_completion_tokens": 256, "messages": MESSAGES}
    assert body("vllm", GenerationParams(temperature=1.0))["temperature"] == 1.0
    assert "max_tokens" not in body("vllm", GenerationParams(max_new_tokens=MAX_NEW_TOKENS))


ALL = GenerationParams(
    temperature=0.5,
    top_k=0,
    top_p=0.9,
    min_p=0.1,
    repetition_penalty=1.1,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    logit_bias={7: 5.0},
    seed=2**63 - 1,
    stop=tuple("abcde"),
    ignore_eos=True,
)


@pytest.mark.parametrize(
    ("dialect", "changes"),
    [
        ("vllm", {"top_k": -1}),
        ("sglang", {"top_k": -1}),
        ("aiochatstream", {}),
        ("llama.cpp", {"repetition_penalty": None, "repeat_penalty": 1.1, "seed": (2**63 - 1) % (2**32 - 1)}),
        ("openai", {"top_k": None, "min_p": None, "repetition_penalty": None, "ignore_eos": None, "stop": [*"abcd"]}),
    ],
)
def test_parameters_have_the_names_of_the_dialect(dialect: str, changes: dict[str, Any]) -> None:
    expected: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 0,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"7": 5.0},
        "seed": 2**63 - 1,
        "stop": [*"abcde"],
        "ignore_eos": True,
    }
    expected |= changes
    sent = body(dialect, ALL)
    assert {name: sent.get(name) for name in expected} == expected


def test_greedy_decoding_is_temperature_0() -> None:
    sent = body("vllm", GenerationParams(top_p=0.0, temperature=0.7))
    assert sent["temperature"] == 0
    assert "top_p" not in sent


@pytest.mark.parametrize(
    ("dialect", "off"),
    [
        ("vllm", {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        ("aiochatstream", {"reasoning_effort": "none"}),
    ],
)
def test_the_switch_for_thoughts(dialect: str, off: dict[str, Any]) -> None:
    assert body(dialect, GenerationParams(thinking="off")).items() >= off.items()
    sent = body("vllm", GenerationParams(thinking="low", chat_template_kwargs={"lang": "ja"}, max_thinking_tokens=9))
    assert sent["thinking_token_budget"] == 9
    assert sent["chat_template_kwargs"] == {
        "enable_thinking": True,
        "thinking": True,
        "reasoning_effort": "low",
        "lang": "ja",
    }


@pytest.mark.parametrize(
    ("dialect", "params", "field"),
    [
        ("openai-compatible", {"top_k": 5}, "top_k"),
        ("openai", {"min_p": 0.5}, "min_p"),
        ("vllm", {"typical_p": 0.5}, "typical_p"),
        ("vllm", {"repetition_penalty_method": "subtractive"}, "repetition_penalty_method"),
        ("vllm", {"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
        ("openai-compatible", {"ignore_eos": True}, "ignore_eos"),
        ("openai-compatible", {"thinking": "off"}, "thinking"),
        ("openai-compatible", {"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ("sglang", {"max_thinking_tokens": 3}, "max_thinking_tokens"),
    ],
)
def test_unsupported_parameters_are_refused(dialect: str, params: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{field}: not supported by the model's server"):
        check_params(GenerationParams(**params), BY_NAME[dialect], renders=True)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_parameters_that_are_off_are_accepted(dialect: Dialect) -> None:
    off = GenerationParams(top_k=0, min_p=0.0, typical_p=1.0, repetition_penalty=1.0, ignore_eos=False, logit_bias={})
    check_params(off, dialect, renders=True)


def test_a_front_that_renders_the_template_sends_no_switch_for_thoughts() -> None:
    check_params(GenerationParams(thinking="off", chat_template_kwargs={"a": 1}), BY_NAME["openai"], renders=False)
    sent = body("vllm", GenerationParams(thinking="off"), Prompt(MESSAGES, [1, 2]))
    assert "chat_template_kwargs" not in sent
    with pytest.raises(InvalidValue, match="max_thinking_tokens"):
        check_params(GenerationParams(max_thinking_tokens=5), BY_NAME["vllm"], renders=False)


def test_token_ids_and_texts_are_completions() -> None:
    params = GenerationParams()
    path, sent = request_of(Prompt(MESSAGES, [1, 2]), params, BY_NAME["vllm"], text="a", token_ids=[3])
    assert (path, sent["prompt"]) == ("/v1/completions", [1, 2, 3])
    text = Prompt([{"role": "user", "content": "Once"}], [], continued=True, chat=False)
    path, sent = request_of(text, params, BY_NAME["openai-compatible"], text=" upon")
    assert (path, sent["prompt"]) == ("/v1/completions", "Once upon")


CONTINUING = {
    "vllm": {"continue_final_message": True, "add_generation_prompt": False},
    "sglang": {"continue_final_message": True},
    "aiochatstream": {"continue_final_message": True},
    "llama.cpp": {},
}


@pytest.mark.parametrize("dialect", CONTINUING)
def test_an_answer_so_far_is_a_message_to_continue(dialect: str) -> None:
    sent = body(dialect, text="Hi", thinking="hm")
    assert sent["messages"] == [*MESSAGES, {"role": "assistant", "content": "Hi", "reasoning_content": "hm"}]
    assert sent.items() >= CONTINUING[dialect].items()
    open_answer = {"role": "assistant", "content": "Well, "}
    prompt = Prompt([*MESSAGES, open_answer], [], continued=True)
    assert body(dialect, prompt=prompt).items() >= CONTINUING[dialect].items()
    sent = body(dialect, prompt=prompt, text="hi")
    assert sent["messages"] == [*MESSAGES, {"role": "assistant", "content": "Well, hi"}]
    assert open_answer["content"] == "Well, "


def test_a_plain_server_continues_no_message() -> None:
    with pytest.raises(BadRequest):
        body("openai-compatible", text="Hi")


def test_owners_have_salts_that_nobody_can_guess() -> None:
    salts = {cache_salt(owner, secret) for owner in ("account:a", "account:b") for secret in (b"1", b"2")}
    assert len(salts) == 4
