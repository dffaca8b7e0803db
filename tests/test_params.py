"""The ranges of the parameters and the sentences that a wrong value is answered with."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from aiochatstream.constraint import Constraint
from aiochatstream.errors import InvalidValue
from aiochatstream.param_limits import checked_limits
from aiochatstream.params import GenerationParams, Limits, ParamOverrides, validated

NOT_WHOLE = [True, 1.0, "1"]
NOT_A_NUMBER = [True, "1", math.nan, math.inf]
MORE_THAN_2, MORE_THAN_1, MORE_THAN_10 = (math.nextafter(value, math.inf) for value in (2.0, 1.0, 10.0))

COUNT_PENALTY = ([-2, 0, 0.5, 2, 2.0], [-MORE_THAN_2, MORE_THAN_2, *NOT_A_NUMBER], "a number from -2 to 2; 0 is off")

# field: values in the range, values outside of it, the range in words
GENERATION: dict[str, tuple[list[Any], list[Any], str]] = {
    "max_new_tokens": ([1, 1_000_000], [0, -1, 1_000_001, *NOT_WHOLE], "a whole number of tokens from 1 to 1000000"),
    "temperature": ([0, 0.0, 0.7, 2, 2.0], [-5e-324, MORE_THAN_2, *NOT_A_NUMBER], "a number from 0 (greedy) to 2"),
    "top_k": ([0, 1, 1000], [-1, 1001, *NOT_WHOLE], "a whole number from 0 (off) to 1000"),
    "top_p": ([0, 0.0, 0.001, 1, 1.0], [-0.001, MORE_THAN_1, *NOT_A_NUMBER], "a number from 0 (greedy) to 1 (off)"),
    "min_p": ([0, 0.05, 1, 1.0], [-5e-324, MORE_THAN_1, *NOT_A_NUMBER], "a number from 0 (off) to 1"),
    "typical_p": ([0.001, 1, 1.0], [0, 0.0, MORE_THAN_1, *NOT_A_NUMBER], "a number above 0, up to 1 (off)"),
    "repetition_penalty": (
        [0.01, 1, 10, 10.0],
        [-5e-324, -1.0, MORE_THAN_10, *NOT_A_NUMBER],
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

SECONDS = (
    [0.001, 60, 86_400, 86_400.0],
    [0, 0.0, -1, 86_400.001, *NOT_A_NUMBER],
    "a number of seconds above 0, up to 86400",
)

LIMITS: dict[str, tuple[list[Any], list[Any], str]] = {
    "num_of_concurrent_executions": ([1, 1024], [0, 1025, None, *NOT_WHOLE], "a whole number from 1 to 1024"),
    "max_queue_size": ([0, 100_000], [-1, 100_001, None, *NOT_WHOLE], "a whole number from 0 to 100000"),
    "context_len": (
        [None, 16, 10_000_000],
        [15, 10_000_001, *NOT_WHOLE],
        "a whole number of tokens from 16 to 10000000",
    ),
    "max_queue_wait": SECONDS,
    "max_answer": SECONDS,
    "body_timeout": SECONDS,
    "write_timeout": SECONDS,
    "shutdown_timeout": SECONDS,
    "max_request_bytes": ([1024, 1 << 30], [1023, (1 << 30) + 1, *NOT_WHOLE], "a number of bytes from 1024 to 2**30"),
    "wire_format": (
        ["text", "sse", "json", "chatstream", "chatstream-older"],
        ["TEXT", "", None],
        "'text', 'sse', 'json', 'chatstream' or 'chatstream-older'",
    ),
    "overload_status": ([503, 429], [500, "503", None, True], "503 or 429"),
}

SOME_LIMITS: dict[str, Any] = {field: good[0] for field, (good, _, _) in LIMITS.items()}

MODELS: list[tuple[type[BaseModel], dict[str, Any], dict[str, tuple[list[Any], list[Any], str]]]] = [
    (GenerationParams, {}, GENERATION),
    (ParamOverrides, {}, OVERRIDES),
    (Limits, SOME_LIMITS, LIMITS),
]


def name_of(value: Any) -> str | None:
    return value.__name__ if isinstance(value, type) else None


@pytest.mark.parametrize(
    ("model", "others", "field", "value"),
    [
        (model, others, field, value)
        for model, others, fields in MODELS
        for field, (good, _, _) in fields.items()
        for value in good
    ],
    ids=name_of,
)
def test_a_value_at_the_edge_of_its_range_is_taken(
    model: type[BaseModel], others: dict[str, Any], field: str, value: Any
) -> None:
    assert getattr(validated(model, others | {field: value}), field) == value


@pytest.mark.parametrize(
    ("model", "others", "field", "value", "range_in_words"),
    [
        (model, others, field, value, range_in_words)
        for model, others, fields in MODELS
        for field, (_, bad, range_in_words) in fields.items()
        for value in bad
    ],
    ids=name_of,
)
def test_any_other_value_is_refused_with_the_field_and_its_range(
    model: type[BaseModel], others: dict[str, Any], field: str, value: Any, range_in_words: str
) -> None:
    with pytest.raises(ValueError, match=f"^{field}: must be {re.escape(range_in_words)}\\.$"):
        validated(model, others | {field: value})


@pytest.mark.parametrize("field", sorted(GENERATION))
def test_the_servers_own_parameters_are_never_absent(field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: must be "):
        validated(GenerationParams, {field: None})


SERVER = GenerationParams(max_new_tokens=100, temperature=0.5, top_k=7, seed=3)


@pytest.mark.parametrize("overrides", [None, ParamOverrides(), ParamOverrides(temperature=None, max_new_tokens=None)])
def test_what_a_request_does_not_say_stays_as_the_server_has_it(overrides: ParamOverrides | None) -> None:
    assert SERVER.override(overrides, stop=()) == SERVER


def test_a_request_overrides_what_it_names_for_itself_alone() -> None:
    overrides = ParamOverrides(temperature=0, top_k=0, ignore_eos=True)
    assert SERVER.override(overrides, stop=()) == GenerationParams(
        max_new_tokens=100, temperature=0, top_k=0, seed=3, ignore_eos=True
    )
    assert SERVER.temperature == 0.5


def test_what_a_request_cannot_override_stays() -> None:
    asked = GenerationParams(logprobs=2, constraint=Constraint("regex", "a|b"))
    assert asked.override(ParamOverrides(top_k=3)) == asked.model_copy(update={"top_k": 3})


def test_a_request_may_ask_for_as_many_tokens_as_the_server_allows_and_no_more() -> None:
    assert SERVER.override(ParamOverrides(max_new_tokens=100), stop=()).max_new_tokens == 100
    with pytest.raises(InvalidValue, match=r"^params\.max_new_tokens: must be from 1 to 100 on this server\.$"):
        SERVER.override(ParamOverrides(max_new_tokens=101), stop=())


def test_the_prompts_stop_strings_hold_beside_those_of_the_request() -> None:
    assert SERVER.override(None, stop=("<human>:",)).stop == ("<human>:",)
    assert SERVER.override(ParamOverrides(stop=["a", "b"]), stop=("<human>:",)).stop == ("<human>:", "a", "b")


def test_the_last_of_several_overrides_counts_most() -> None:
    user, request = ParamOverrides(temperature=1.5, top_k=3, stop=["a"]), ParamOverrides(top_k=9, stop=["b"])
    params = SERVER.override(user, request, stop=("x",))
    assert (params.temperature, params.top_k, params.stop) == (1.5, 9, ("x", "b"))
    assert SERVER.override(user, None).stop == ("a",)


def test_a_penalty_of_0_is_one_to_subtract_and_none_to_divide_by() -> None:
    subtractive = GenerationParams(repetition_penalty=0, repetition_penalty_method="subtractive")
    assert subtractive.override(None) == subtractive
    with pytest.raises(ValueError, match=r"^repetition_penalty: must be from 0\.01 to 10 with the method 'multi"):
        validated(GenerationParams, {"repetition_penalty": math.nextafter(0.01, 0)})
    says = r"^params\.repetition_penalty: must be from 0\.01 to 10 with the method 'multiplicative'\.$"
    with pytest.raises(InvalidValue, match=says):
        subtractive.override(ParamOverrides(repetition_penalty_method="multiplicative"))
    with pytest.raises(InvalidValue, match=says):
        SERVER.override(ParamOverrides(repetition_penalty=0))


@pytest.mark.parametrize(("name", "inside", "outside"), [("temperature", 0, 1.01), ("top_k", 7, 0), ("top_k", 20, 21)])
def test_a_narrower_limit_of_the_server_holds_up_to_its_ends(name: str, inside: Any, outside: Any) -> None:
    limits = checked_limits({"temperature": (0, 1), "top_k": [1, 20]}, SERVER)
    assert getattr(SERVER.override(ParamOverrides(**{name: inside}), limits=limits), name) == inside
    least, most = limits[name]
    with pytest.raises(InvalidValue, match=rf"^params\.{name}: must be from {least} to {most} on this server\.$"):
        SERVER.override(ParamOverrides(**{name: outside}), limits=limits)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ([("top_k", 1)], "must be a mapping"),
        ({"topk": (1, 5)}, "'topk' is none of temperature, top_k, "),
        ({"max_new_tokens": (1, 5)}, "'max_new_tokens' is none of"),
        ({"seed": (1, 5)}, "'seed' is none of"),
        ({"top_k": 5}, r"top_k: must be \(least, most\), not 5"),
        ({"top_k": (1, 2, 3)}, r"top_k: must be \(least, most\)"),
        ({"top_k": (None, 7)}, r"top_k: must be \(least, most\)"),
        ({"top_k": (9, 5)}, r"top_k: must be \(least, most\), not \(9, 5\)"),
        ({"top_k": (1.5, 9)}, r"top_k: must be a whole number from 0 \(off\) to 1000"),
        ({"temperature": (0, 2.1)}, r"temperature: must be a number from 0 \(greedy\) to 2"),
        ({"temperature": (math.nan, 1)}, "temperature: must be a number"),
        ({"top_k": (8, 9)}, "top_k: must hold the server's own, 7; 8 to 9 does not"),
        ({"temperature": (0, 0.4)}, "temperature: must hold the server's own, 0.5; 0 to 0.4 does not"),
    ],
)
def test_limits_that_make_no_sense_are_refused_by_name(limits: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"^param_limits: {says}"):
        checked_limits(limits, SERVER)


def test_a_bias_of_a_token_that_the_model_does_not_have_is_refused() -> None:
    overrides = ParamOverrides(logit_bias={3: 1, 40: -1})
    assert SERVER.override(overrides, vocabulary=41).logit_bias == {3: 1, 40: -1}
    assert SERVER.override(overrides).logit_bias == {3: 1, 40: -1}
    with pytest.raises(InvalidValue, match=r"^params\.logit_bias: 40 is none of the model's 40 token ids\.$"):
        SERVER.override(overrides, vocabulary=40)


def test_an_error_is_described_without_making_the_schema_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(BaseModel):
        count: Annotated[int, Field(ge=1, description="a whole number from 1")]

    made: list[dict[str, Any]] = []

    def make() -> dict[str, Any]:
        made.append(schema)
        return schema

    schema = Asked.model_json_schema()
    monkeypatch.setattr(Asked, "model_json_schema", make)
    for _ in range(3):
        with pytest.raises(ValueError, match="count: must be a whole number from 1"):
            validated(Asked, {"count": 0})
    assert len(made) == 1
