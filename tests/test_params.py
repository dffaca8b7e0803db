"""Ranges of parameters and limits, and the errors for invalid values."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from aiochatstream.constraint import Constraint
from aiochatstream.errors import InvalidValue
from aiochatstream.params import Capacity, GenerationParams, Limits, ParamLimits, ParamOverrides
from aiochatstream.validation import validated

NOT_WHOLE: list[Any] = [True, 1.0, "1"]
NOT_A_NUMBER: list[Any] = [True, "1", math.nan, math.inf]
ABOVE_2, ABOVE_1, ABOVE_10 = (math.nextafter(value, math.inf) for value in (2.0, 1.0, 10.0))

Cases = tuple[list[Any], list[Any], str]
"""Valid values, invalid values, and the range in words."""

COUNT_PENALTY: Cases = ([-2, 0, 0.5, 2, 2.0], [-ABOVE_2, ABOVE_2, *NOT_A_NUMBER], "a number from -2 to 2; 0 is off")

GENERATION: dict[str, Cases] = {
    "max_new_tokens": ([1, 1_000_000], [0, -1, 1_000_001, *NOT_WHOLE], "a whole number of tokens from 1 to 1000000"),
    "temperature": ([0, 0.0, 0.7, 2, 2.0], [-5e-324, ABOVE_2, *NOT_A_NUMBER], "a number from 0 (greedy) to 2"),
    "top_k": ([0, 1, 1000], [-1, 1001, *NOT_WHOLE], "a whole number from 0 (off) to 1000"),
    "top_p": ([0, 0.0, 0.001, 1, 1.0], [-0.001, ABOVE_1, *NOT_A_NUMBER], "a number from 0 (greedy) to 1 (off)"),
    "min_p": ([0, 0.05, 1, 1.0], [-5e-324, ABOVE_1, *NOT_A_NUMBER], "a number from 0 (off) to 1"),
    "typical_p": ([0.001, 1, 1.0], [0, 0.0, ABOVE_1, *NOT_A_NUMBER], "a number above 0, up to 1 (off)"),
    "repetition_penalty": (
        [0.01, 1, 10, 10.0],
        [-5e-324, -1.0, ABOVE_10, *NOT_A_NUMBER],
        "a number from 0.01 to 10, 1 is off; with subtractive from 0 to 10, 0 is off",
    ),
    "repetition_penalty_method": (
        ["multiplicative", "subtractive"],
        ["", "Subtractive", 1],
        "'multiplicative' or 'subtractive'",
    ),
    "presence_penalty": COUNT_PENALTY,
    "frequency_penalty": COUNT_PENALTY,
    "no_repeat_ngram_size": ([0, 1, 100], [-1, 101, *NOT_WHOLE], "a whole number of tokens from 0 (off) to 100"),
    "logit_bias": (
        [{}, {0: -100, 2**31 - 1: 100.0}, dict.fromkeys(range(300), 1)],
        [[], "x", {-1: 1}, {2**31: 1}, {0: 100.1}, {0: -100.1}, {0: True}, {"a": 1}, dict.fromkeys(range(301), 1)],
        "an object of up to 300 token ids with numbers from -100 to 100",
    ),
    "thinking": (
        ["off", "low", "medium", "high", "auto"],
        ["on", "", True, 1],
        "'off', 'low', 'medium', 'high' or 'auto'",
    ),
    "chat_template_kwargs": (
        [{}, {"_a1": {"b": [1, None, True, "日本"]}}, {f"x{n}": 1 for n in range(32)}, {"a": "x" * 8183}],
        [
            [],
            "x",
            {"a b": 1},
            {"": 1},
            {"1a": 1},
            {"é": 1},
            {"a" * 65: 1},
            {"a": math.nan},
            {"a": {1, 2}},
            {"a": "\ud800"},
            {"a": "x" * 8184},
            {f"x{n}": 1 for n in range(33)},
            {"a": json.loads("[" * 16 + "]" * 16)},
        ],
        "an object of up to 32 variables with JSON values, of at most 8192 bytes in total and 16 levels deep",
    ),
    "seed": ([0, 2**63 - 1], [-1, 2**63, *NOT_WHOLE], "a whole number from 0 to 2**63 - 1"),
}

OVERRIDES = GENERATION | {
    "stop": (
        [[], ["x"], ["x" * 128] * 16],
        ["x", [""], ["x" * 129], ["x"] * 17, [1], ["x", None]],
        "a list of up to 16 strings of 1 to 128 characters",
    ),
    "ignore_eos": ([True, False], [1, 0, "true"], "true or false"),
}

SECONDS: Cases = (
    [0.001, 60, 86_400, 86_400.0],
    [0, 0.0, -1, 86_400.001, *NOT_A_NUMBER],
    "a number of seconds above 0, up to 86400",
)

FLAG: Cases = ([True, False], [1, 0, "true", None], "true or false")

CAPACITY: dict[str, Cases] = {
    "num_of_concurrent_executions": ([1, 100_000, None], [0, 100_001, *NOT_WHOLE], "a whole number from 1 to 100000"),
    "max_queue_size": ([0, 100_000], [-1, 100_001, None, *NOT_WHOLE], "a whole number from 0 to 100000"),
}

LIMITS: dict[str, Cases] = {
    "context_len": (
        [None, "max", 16, 10_000_000],
        [15, 10_000_001, "min", *NOT_WHOLE],
        "a whole number of tokens from 16 to 10000000, or 'max'",
    ),
    "fill_context": FLAG,
    "strict_max_tokens": FLAG,
    "max_queue_wait": SECONDS,
    "max_answer": SECONDS,
    "body_timeout": SECONDS,
    "write_timeout": SECONDS,
    "shutdown_timeout": SECONDS,
    "max_request_bytes": ([1024, 1 << 30], [1023, (1 << 30) + 1, *NOT_WHOLE], "a number of bytes from 1024 to 2**30"),
    "overload_status": ([503, 429], [500, "503", None, True], "503 or 429"),
}

MODELS: list[tuple[type[BaseModel], dict[str, Cases]]] = [
    (GenerationParams, GENERATION),
    (ParamOverrides, OVERRIDES),
    (Capacity, CAPACITY),
    (Limits, LIMITS),
]


def class_name(value: object) -> str | None:
    return value.__name__ if isinstance(value, type) else None


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [(model, field, value) for model, fields in MODELS for field, (valid, _, _) in fields.items() for value in valid],
    ids=class_name,
)
def test_values_at_the_ends_of_a_range_are_accepted(model: type[BaseModel], field: str, value: Any) -> None:
    assert getattr(validated(model, {field: value}), field) == value


@pytest.mark.parametrize(
    ("model", "field", "value", "words"),
    [
        (model, field, value, words)
        for model, fields in MODELS
        for field, (_, invalid, words) in fields.items()
        for value in invalid
    ],
    ids=class_name,
)
def test_an_error_names_the_field_and_its_range(model: type[BaseModel], field: str, value: Any, words: str) -> None:
    quoted_value = "" if model is ParamOverrides else f", not {reprlib.repr(value)}"
    with pytest.raises(ValueError, match=f"^{field}: must be {re.escape(f'{words}{quoted_value}.')}$"):
        validated(model, {field: value})


@pytest.mark.parametrize("field", sorted(GENERATION))
def test_the_servers_own_parameters_must_not_be_null(field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: must be "):
        validated(GenerationParams, {field: None})


@pytest.mark.parametrize(
    ("construct", "sentence"),
    [
        (lambda: Limits(max_answer=-1), "max_answer: must be a number of seconds above 0, up to 86400, not -1."),
        (lambda: GenerationParams(top_p=7), "top_p: must be a number from 0 (greedy) to 1 (off), not 7."),
        (lambda: ParamLimits(top_k=(9, 5)), "top_k: must be (minimum, maximum), not (9, 5)."),
        (
            lambda: GenerationParams(heat=1),  # type: ignore[call-arg]
            "heat: unknown field; choose from max_new_tokens, temperature, ",
        ),
        (
            lambda: Limits(max_queue_size=1),  # type: ignore[call-arg]
            "max_queue_size: unknown field; choose from context_len, ",
        ),
    ],
)
def test_constructors_raise_one_sentence(construct: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        construct()
    assert "\n" not in str(error.value)


def test_limits_have_defaults() -> None:
    assert Limits().model_dump() == {
        "context_len": None,
        "fill_context": False,
        "strict_max_tokens": False,
        "max_queue_wait": 60,
        "max_answer": 300,
        "body_timeout": 30,
        "write_timeout": 30,
        "shutdown_timeout": 20,
        "max_request_bytes": 1 << 20,
        "overload_status": 503,
    }


def test_the_rules_for_json_apply_to_parameters_within_other_models() -> None:
    class Head(BaseModel):
        params: GenerationParams

    head = Head(params=GenerationParams(stop=("a",), constraint=Constraint("regex", "a|b")))
    assert Head.model_validate_json(head.model_dump_json()) == head


SERVER = GenerationParams(max_new_tokens=100, temperature=0.5, top_k=7, seed=3)


@pytest.mark.parametrize("overrides", [None, ParamOverrides(), ParamOverrides(temperature=None, max_new_tokens=None)])
def test_missing_and_null_overrides_keep_the_servers_values(overrides: ParamOverrides | None) -> None:
    assert SERVER.override(overrides, stop=()) == SERVER


def test_overrides_leave_the_servers_parameters_unchanged() -> None:
    overrides = ParamOverrides(temperature=0, top_k=0, ignore_eos=True)
    assert SERVER.override(overrides, stop=()) == GenerationParams(
        max_new_tokens=100, temperature=0, top_k=0, seed=3, ignore_eos=True
    )
    assert SERVER.temperature == 0.5


def test_parameters_without_an_override_are_kept() -> None:
    params = GenerationParams(logprobs=2, constraint=Constraint("regex", "a|b"))
    assert params.override(ParamOverrides(top_k=3)) == params.model_copy(update={"top_k": 3})


def test_max_new_tokens_is_limited_by_the_servers_own() -> None:
    assert SERVER.override(ParamOverrides(max_new_tokens=100), stop=()).max_new_tokens == 100
    with pytest.raises(InvalidValue, match=r"^params\.max_new_tokens: must be from 1 to 100 on this server\.$"):
        SERVER.override(ParamOverrides(max_new_tokens=101), stop=())


def test_stop_strings_of_prompt_and_request_are_combined() -> None:
    assert SERVER.override(None, stop=("<human>:",)).stop == ("<human>:",)
    assert SERVER.override(ParamOverrides(stop=["a", "b"]), stop=("<human>:",)).stop == ("<human>:", "a", "b")


def test_later_overrides_take_precedence() -> None:
    user, request = ParamOverrides(temperature=1.5, top_k=3, stop=["a"]), ParamOverrides(top_k=9, stop=["b"])
    params = SERVER.override(user, request, stop=("x",))
    assert (params.temperature, params.top_k, params.stop) == (1.5, 9, ("x", "b"))
    assert SERVER.override(user, None).stop == ("a",)


def test_a_repetition_penalty_of_0_is_subtractive_only() -> None:
    subtractive = GenerationParams(repetition_penalty=0, repetition_penalty_method="subtractive")
    assert subtractive.override(None) == subtractive
    with pytest.raises(ValueError, match=r"^repetition_penalty: must be from 0\.01 to 10 with the method 'multi"):
        GenerationParams(repetition_penalty=math.nextafter(0.01, 0))
    sentence = r"^params\.repetition_penalty: must be from 0\.01 to 10 with the method 'multiplicative'\.$"
    with pytest.raises(InvalidValue, match=sentence):
        subtractive.override(ParamOverrides(repetition_penalty_method="multiplicative"))
    with pytest.raises(InvalidValue, match=sentence):
        SERVER.override(ParamOverrides(repetition_penalty=0))


@pytest.mark.parametrize(("name", "inside", "outside"), [("temperature", 0, 1.01), ("top_k", 7, 0), ("top_k", 20, 21)])
def test_param_limits_are_inclusive(name: str, inside: Any, outside: Any) -> None:
    limits = ParamLimits.of({"temperature": (0, 1), "top_k": [1, 20]}, SERVER)
    assert limits == ParamLimits(temperature=(0, 1), top_k=(1, 20))
    assert getattr(SERVER.override(ParamOverrides(**{name: inside}), limits=limits), name) == inside
    minimum, maximum = getattr(limits, name)
    with pytest.raises(InvalidValue, match=rf"^params\.{name}: must be from {minimum} to {maximum} on this server\.$"):
        SERVER.override(ParamOverrides(**{name: outside}), limits=limits)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ([("top_k", 1)], "must be a mapping"),
        ({"topk": (1, 5)}, "unknown parameter 'topk'; choose from temperature, top_k, "),
        ({"max_new_tokens": (1, 5)}, "unknown parameter 'max_new_tokens'"),
        ({"seed": (1, 5)}, "unknown parameter 'seed'"),
        ({"top_k": 5}, r"top_k: must be \(minimum, maximum\), not 5"),
        ({"top_k": (1, 2, 3)}, r"top_k: must be \(minimum, maximum\)"),
        ({"top_k": (None, 7)}, r"top_k: must be \(minimum, maximum\)"),
        ({"top_k": (9, 5)}, r"top_k: must be \(minimum, maximum\), not \(9, 5\)"),
        ({"top_k": (1.5, 9)}, r"top_k: must be a whole number from 0 \(off\) to 1000"),
        ({"temperature": (0, 2.1)}, r"temperature: must be a number from 0 \(greedy\) to 2"),
        ({"temperature": (math.nan, 1)}, "temperature: must be a number"),
        ({"top_k": (8, 9)}, "top_k: the range 8 to 9 must include the server's default, 7"),
        ({"thinking": "off"}, "thinking: must be a tuple of levels from off, low, medium, high, auto, not 'off'"),
        ({"thinking": []}, "thinking: must be a tuple of levels"),
        ({"thinking": ("on",)}, "thinking: must be a tuple of levels"),
        ({"thinking": ("off", "low")}, "thinking: off, low must include the server's default, auto"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs: must be a tuple of names, not 'x'"),
        ({"chat_template_kwargs": (1,)}, "chat_template_kwargs: must be a tuple of names"),
        ({"temperature": (0, 0.4)}, "temperature: the range 0 to 0.4 must include the server's default, 0.5"),
    ],
)
def test_an_error_names_the_limited_parameter(limits: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^param_limits: {sentence}"):
        ParamLimits.of(limits, SERVER)


def kwargs(**values: Any) -> ParamOverrides:
    return ParamOverrides(chat_template_kwargs=values)


@pytest.mark.parametrize(
    ("overrides", "thinking", "template_kwargs"),
    [
        ([], "low", {"language": "en", "style": "short"}),
        ([None, kwargs(language="ja", other=None)], "low", {"language": "ja", "style": "short", "other": None}),
        ([ParamOverrides(thinking="auto")], "auto", {"language": "en", "style": "short"}),
        ([kwargs(enable_thinking=False)], "auto", {"language": "en", "style": "short", "enable_thinking": False}),
        ([kwargs(thinking=True), ParamOverrides(thinking="off")], "off", {"language": "en", "style": "short"}),
        ([kwargs(reasoning_effort="x"), ParamOverrides(thinking="auto")], "auto", {"reasoning_effort": "x"}),
        ([ParamOverrides(thinking="off", chat_template_kwargs={"thinking": True})], "auto", {"thinking": True}),
    ],
)
def test_the_last_switch_of_thoughts_applies_and_other_variables_are_merged(
    overrides: list[ParamOverrides | None], thinking: str, template_kwargs: dict[str, Any]
) -> None:
    server = GenerationParams(thinking="low", chat_template_kwargs={"language": "en", "style": "short"})
    params = server.override(*overrides)
    assert params.thinking == thinking
    assert params.chat_template_kwargs == {"language": "en", "style": "short"} | template_kwargs


@pytest.mark.parametrize(
    ("limits", "override", "sentence"),
    [
        ({"thinking": ("auto", "off")}, ParamOverrides(thinking="low"), "thinking: must be 'auto' or 'off' on this"),
        (
            {"thinking": ("auto",)},
            kwargs(thinking=1),
            "chat_template_kwargs.thinking: must be absent; this se",
        ),
        ({"thinking": ("auto",)}, kwargs(a=1), "chat_template_kwargs.a: must be absent; this server allows no v"),
        ({"chat_template_kwargs": ()}, kwargs(a=1), "chat_template_kwargs.a: must be absent; this server allows no v"),
        ({"chat_template_kwargs": ["b"]}, kwargs(b=1, a=1), "chat_template_kwargs.a: must be absent; this server a"),
    ],
)
def test_levels_and_variables_outside_the_limits_are_refused(
    limits: dict[str, Any], override: ParamOverrides, sentence: str
) -> None:
    param_limits = ParamLimits.of(limits, SERVER)
    with pytest.raises(InvalidValue, match=f"^params.{re.escape(sentence)}"):
        SERVER.override(override, limits=param_limits)
    allowed = SERVER.override(ParamOverrides(thinking="auto"), None, limits=param_limits)
    assert allowed == SERVER


def test_merged_variables_have_the_same_limit_of_size() -> None:
    server = GenerationParams(chat_template_kwargs={"a": "x" * 5000})
    with pytest.raises(InvalidValue, match=r"^params\.chat_template_kwargs: must be an object of up to 32 variables"):
        server.override(kwargs(b="x" * 5000))


def test_a_logit_bias_outside_the_vocabulary_is_refused() -> None:
    overrides = ParamOverrides(logit_bias={3: 1, 40: -1})
    assert SERVER.override(overrides, vocabulary_size=41).logit_bias == {3: 1, 40: -1}
    assert SERVER.override(overrides).logit_bias == {3: 1, 40: -1}
    with pytest.raises(
        InvalidValue, match=r"^params\.logit_bias: token id 40 is out of range; the vocabulary has 40 tokens\.$"
    ):
        SERVER.override(overrides, vocabulary_size=40)
