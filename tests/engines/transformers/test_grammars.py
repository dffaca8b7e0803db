"""Tests of constrained answers of a trained model."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field

from aiochatstream import Constraint, Engine, FunctionEngine, GenerationParams, Prompt, ScriptedEngine, TokenSampler
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.errors import InvalidValue
from tests.engines.transformers.engine_harness import (
    answer,
    concurrent_deltas,
    deltas_of,
    load_engine,
    text_of,
    tokens_of,
)
from tests.engines.transformers.tiny_models import question, reference, tiny
from tests.helpers import PATIENCE, echo
from tests.small_engine import SLOTS, SmallEngine

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llguidance") is None,
    reason="llguidance is missing: pip install 'aiochatstream[constrained]'",
)


class City(BaseModel):
    """Schema of an answer; with limits, because the small model would not end unlimited strings."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=12)]
    kind: Literal["capital", "port", "日本の都市"]
    people: Annotated[int, Field(ge=0, le=99_999_999)]
    rivers: Annotated[list[Annotated[str, Field(max_length=8)]], Field(max_length=2)]


CITY = Constraint.json_schema(City.model_json_schema())
DIGITS = Constraint("regex", r"[0-9]{3}-[0-9]{4}")


@pytest.fixture(scope="module")
def engine(small_engine: SmallEngine) -> TransformersEngine:
    return small_engine


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> list[int]:
    return question(tokenizer, "Tell me of a city, as JSON.")


def test_sampled_answers_are_json_of_the_schema(engine: TransformersEngine, ids: list[int]) -> None:
    city: dict[str, Any] = {"constraint": CITY, "max_new_tokens": 80}
    params = [*({**city, "temperature": 1.3, "seed": seed} for seed in range(SLOTS - 1)), city]
    answers = concurrent_deltas(engine, [(ids, options) for options in params])
    complete = [deltas for deltas in answers if deltas[-1].finish_reason == "stop"]
    assert len(complete) > SLOTS / 2
    texts = {text_of(deltas) for deltas in complete}
    assert len(texts) > SLOTS / 3, "the answers are too similar"
    for text in texts:
        City.model_validate_json(text)
        assert list(json.loads(text)) == list(City.model_fields)
        assert not re.search(r"\s{18}|\n\s*\n", re.sub(r'"(\\.|[^"])*"', '""', text)), "there is too much whitespace"


def test_constrained_answers_do_not_change_concurrent_unconstrained_ones(
    engine: TransformersEngine, untouched_model: Any, ids: list[int]
) -> None:
    greedy: dict[str, Any] = {"max_new_tokens": 16}
    sampled: dict[str, Any] = {"max_new_tokens": 16, "temperature": 1.0, "seed": 4, "top_p": 0.9, "top_k": 50}
    expected = answer(engine, ids, **sampled)
    constrained: list[dict[str, Any]] = [
        {"max_new_tokens": 80, "constraint": constraint, "top_p": 0.9, "temperature": 0.8}
        for constraint in (CITY, DIGITS)
    ]
    answers = concurrent_deltas(engine, [(ids, params) for params in (greedy, sampled, *constrained)])
    assert tokens_of(answers[0]) == reference(untouched_model, ids, 16)
    assert tokens_of(answers[1]) == expected
    assert re.fullmatch(DIGITS.text, text_of(answers[3]))


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint("regex", "(yes|no)"), "yes|no"),
        (Constraint("regex", "東京タワーは[0-9]{3}メートルです。🗼"), "東京タワーは[0-9]{3}メートルです。🗼"),
        (Constraint("lark", 'start: "<call>" %json {"enum": [1, "a"]} "</call>"'), '<call>(1|"a")</call>'),
        (Constraint.json_schema({"type": "boolean"}), "true|false"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_every_kind_of_constraint_gives_a_matching_text(
    engine: TransformersEngine, ids: list[int], constraint: Constraint, pattern: str
) -> None:
    deltas = deltas_of(engine, ids, constraint=constraint, max_new_tokens=40)
    assert re.fullmatch(pattern, text_of(deltas))
    assert deltas[-1].finish_reason == "stop"


def test_a_json_object_is_valid_or_cut_at_max_new_tokens(engine: TransformersEngine, ids: list[int]) -> None:
    deltas = deltas_of(engine, ids, constraint=Constraint("json_object"), max_new_tokens=40)
    text = text_of(deltas)
    assert text.startswith("{")
    if deltas[-1].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    else:
        assert len(tokens_of(deltas)) == 40


def test_an_array_that_may_be_empty_contains_the_models_answer(engine: TransformersEngine, tokenizer: Any) -> None:
    days = "Give me the seven days of the week as JSON, an array of strings under the key items."
    schema = {"type": "object", "properties": {"items": {"type": "array", "items": {"type": "string"}}}}
    constraint = Constraint.json_schema({**schema, "required": ["items"]})
    text = text_of(deltas_of(engine, question(tokenizer, days), constraint=constraint, max_new_tokens=80))
    assert {"Monday", "Tuesday", "Wednesday"} <= set(re.findall(r'"(\w+)"', text)), text


def test_a_complete_answer_with_ignore_eos_has_no_further_text(engine: TransformersEngine, ids: list[int]) -> None:
    complete = deltas_of(engine, ids, max_new_tokens=80, constraint=DIGITS)
    ignoring = deltas_of(engine, ids, constraint=DIGITS, ignore_eos=True, max_new_tokens=16)
    assert text_of(complete) == text_of(ignoring)
    assert complete[-1].finish_reason == "stop"
    assert (len(tokens_of(ignoring)), ignoring[-1].finish_reason) == (16, "length")


def test_a_stop_string_ends_a_constrained_answer(engine: TransformersEngine, ids: list[int]) -> None:
    deltas = deltas_of(engine, ids, max_new_tokens=80, constraint=CITY, stop=('"people"',))
    assert re.fullmatch(r'\{\s*"name":\s*"[^"]*"\s*,\s*"kind":\s*"[^"]*"\s*,\s*', text_of(deltas))
    assert deltas[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    "params",
    [
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 10.0, "presence_penalty": 2.0},
        {"top_k": 1, "temperature": 2.0},
        {"min_p": 1.0, "temperature": 1.0},
        {"typical_p": 0.1, "temperature": 1.0, "top_p": 0.2},
        {"logit_bias": {2: 100}},
    ],
    ids=str,
)
def test_no_parameter_overrides_the_constraint(
    engine: TransformersEngine, ids: list[int], params: dict[str, Any]
) -> None:
    constraint = Constraint("regex", "(7 ){5}")
    assert text_of(deltas_of(engine, ids, max_new_tokens=80, constraint=constraint, **params)) == "7 " * 5


def test_a_cancelled_answer_does_not_change_the_grammar(engine: TransformersEngine, ids: list[int]) -> None:
    expected = text_of(deltas_of(engine, ids, max_new_tokens=80, constraint=CITY))
    cancelled = engine.generate(Prompt([], ids), GenerationParams(temperature=0, constraint=CITY))
    assert [next(cancelled) for _ in range(5)]
    cancelled.close()
    assert text_of(deltas_of(engine, ids, max_new_tokens=80, constraint=CITY)) == expected


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint.json_schema({"type": "objekt"}), "this JSON schema is not supported: Invalid type: objekt."),
        (Constraint.json_schema({"type": "array", "uniqueItems": True}), 'keys: ["uniqueItems"].'),
        (Constraint.json_schema({"$ref": "http://example.com/x"}), "does not fetch resources."),
        (Constraint.json_schema({"type": "object", "properties": {"a": False}, "required": ["a"]}), "unsatisfiable."),
        (Constraint("json_schema", "[1]"), "this JSON schema is not supported: Expecting object"),
        (Constraint("json_schema", "{"), "this JSON schema is not supported: EOF"),
        (Constraint("regex", "a("), "this regular expression is not supported: "),
        (Constraint("lark", "start: foo"), 'this grammar is not supported: at 1(8): unknown name: "foo"'),
    ],
    ids=str,
)
def test_an_unsupported_constraint_is_an_error_with_the_reason(
    engine: TransformersEngine, constraint: Constraint, message: str
) -> None:
    with pytest.raises(InvalidValue, match=rf"^constraint: .*{re.escape(message)}") as error:
        engine.check(GenerationParams(constraint=constraint))
    assert len(error.value.detail) < 400
    assert "\n" not in error.value.detail


def test_a_schema_whose_compilation_would_take_years_is_an_error(engine: TransformersEngine) -> None:
    patterns = [{"type": "string", "pattern": f".*a.{{{length}}}b.*"} for length in range(1, 30)]
    with pytest.raises(InvalidValue, match=r"^constraint: this JSON schema is too complex: "):
        engine.check(GenerationParams(constraint=Constraint.json_schema({"allOf": patterns})))


def test_a_schema_that_is_nested_too_deeply_is_an_error() -> None:
    schema: dict[str, Any] = {}
    for _ in range(sys.getrecursionlimit()):
        schema = {"items": schema}
    with pytest.raises(InvalidValue, match="nested too deeply"):
        Constraint.json_schema(schema)


def test_a_grammar_that_becomes_too_complex_fails_only_its_own_answer(
    engine: TransformersEngine, ids: list[int]
) -> None:
    expected = answer(engine, ids, max_new_tokens=16)
    start = threading.Barrier(2)

    def request(constraint: Constraint | None) -> list[int]:
        start.wait(PATIENCE)
        return answer(engine, ids, constraint=constraint, max_new_tokens=16)

    with ThreadPoolExecutor(2) as threads:
        failing = threads.submit(request, Constraint("regex", "((a{1000}){1000}){1000}"))
        unconstrained = threads.submit(request, None)
        with pytest.raises(InvalidValue, match=r"^constraint: the answer cannot continue: [^\n<]+\.$"):
            failing.result()
        assert unconstrained.result() == expected


class FirstAllowedSampler(TokenSampler):
    """A sampler that returns the first allowed token, or one that is not allowed."""

    def __init__(self) -> None:
        self.obeys = True

    def sample(
        self, logits: torch.Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
    ) -> list[int]:
        return [int((row > -torch.inf).int().argmax()) if self.obeys else 2 for row in logits]


def test_a_custom_sampler_gets_masked_logits_and_must_return_an_allowed_token(model: Any, tokenizer: Any) -> None:
    sampler = FirstAllowedSampler()
    engine = load_engine(model, tokenizer, slots=1, context_len=64, token_sampler=sampler)
    assert re.fullmatch(DIGITS.text, text_of(deltas_of(engine, [5, 6, 7], constraint=DIGITS, max_new_tokens=20)))
    sampler.obeys = False
    with pytest.raises(ValueError, match="must not return 2, which the answer's constraint excludes"):
        deltas_of(engine, [5, 6, 7], constraint=DIGITS, max_new_tokens=20)
    engine.close()


def test_without_llguidance_the_error_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    engine = load_engine(tiny(), slots=1, context_len=64)
    engine.check(GenerationParams())
    with pytest.raises(InvalidValue, match=r"pip install 'aiochatstream\[constrained\]'"):
        engine.check(GenerationParams(constraint=DIGITS))
    engine.close()


def test_engines_without_support_for_constraints_reject_them() -> None:
    engine = load_engine(tiny(), slots=1, context_len=64)
    engines: list[Engine] = [engine, FunctionEngine(echo), ScriptedEngine()]
    for unsupported in engines:
        with pytest.raises(InvalidValue, match=r"^constraint: "):
            unsupported.check(GenerationParams(constraint=DIGITS))
    engine.close()
