"""Answers of a given form, from the real model."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field

from aiochatstream import Constraint, Delta, FunctionEngine, GenerationParams, Prompt, ScriptedEngine, TokenSampler
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.errors import InvalidValue
from tests.engines.transformers.tiny_models import BYTES, question, reference, tiny
from tests.helpers import PATIENCE, echo

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llguidance") is None,
    reason="llguidance is missing: pip install 'aiochatstream[constrained]'",
)


class City(BaseModel):
    """What the model is to fill in: it must be short, or the small model fills it for ever."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=12)]
    kind: Literal["capital", "port", "日本の都市"]
    people: Annotated[int, Field(ge=0, le=99_999_999)]
    rivers: Annotated[list[Annotated[str, Field(max_length=8)]], Field(max_length=2)]


CITY = Constraint.json_schema(City.model_json_schema())
DIGITS = Constraint("regex", r"[0-9]{3}-[0-9]{4}")
SLOTS = 10


@pytest.fixture(scope="module")
def engine(model: Any, tokenizer: Any) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(model, tokenizer)
    engine.load(slots=SLOTS, context_len=512)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> list[int]:
    return question(tokenizer, "Tell me of a city, as JSON.")


def deltas_of(engine: TransformersEngine, ids: list[int], **params: Any) -> list[Delta]:
    given = {"temperature": 0, "max_new_tokens": 80} | params
    return list(engine.generate(Prompt([], ids), GenerationParams(**given)))


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


def together(engine: TransformersEngine, ids: list[int], asked: list[dict[str, Any]]) -> list[list[Delta]]:
    """The answers to one prompt, asked at the same time."""
    begin = threading.Barrier(len(asked))

    def ask(params: dict[str, Any]) -> list[Delta]:
        begin.wait(PATIENCE)
        return deltas_of(engine, ids, **params)

    with ThreadPoolExecutor(len(asked)) as threads:
        return list(threads.map(ask, asked))


def test_of_drawn_answers_each_that_ends_is_json_of_the_schema(engine: TransformersEngine, ids: list[int]) -> None:
    asked: list[dict[str, Any]] = [{"constraint": CITY, "temperature": 1.3, "seed": seed} for seed in range(SLOTS - 1)]
    answers = together(engine, ids, [*asked, {"constraint": CITY}])
    ended = [deltas for deltas in answers if deltas[-1].finish_reason == "stop"]
    assert len(ended) > SLOTS / 2
    texts = {text_of(deltas) for deltas in ended}
    assert len(texts) > SLOTS / 3, "the answers are hardly drawn"
    for text in texts:
        City.model_validate_json(text)
        assert list(json.loads(text)) == list(City.model_fields)
        assert not re.search(r"\s{18}|\n\s*\n", re.sub(r'"(\\.|[^"])*"', '""', text)), "there is too much whitespace"


def test_a_free_row_beside_constrained_ones_says_what_it_says_alone(
    engine: TransformersEngine, untouched_model: Any, ids: list[int]
) -> None:
    free = {"max_new_tokens": 16}
    drawn = {"max_new_tokens": 16, "temperature": 1.0, "seed": 4, "top_p": 0.9, "top_k": 50}
    alone = tokens_of(deltas_of(engine, ids, **drawn))
    constrained = [{"constraint": one, "top_p": 0.9, "temperature": 0.8} for one in (CITY, DIGITS)]
    answers = together(engine, ids, [free, drawn, *constrained])
    assert tokens_of(answers[0]) == reference(untouched_model, ids, 16)
    assert tokens_of(answers[1]) == alone
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
def test_every_kind_of_constraint_gives_the_likeliest_text_of_its_form(
    engine: TransformersEngine, ids: list[int], constraint: Constraint, pattern: str
) -> None:
    deltas = deltas_of(engine, ids, constraint=constraint, max_new_tokens=40)
    assert re.fullmatch(pattern, text_of(deltas))
    assert deltas[-1].finish_reason == "stop"


def test_a_json_object_is_one_as_far_as_it_goes(engine: TransformersEngine, ids: list[int]) -> None:
    deltas = deltas_of(engine, ids, constraint=Constraint("json_object"), max_new_tokens=40)
    text = text_of(deltas)
    assert text.startswith("{")
    if deltas[-1].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    else:
        assert len(tokens_of(deltas)) == 40


def test_an_array_that_may_be_empty_has_what_the_model_knows(engine: TransformersEngine, tokenizer: Any) -> None:
    days = "Give me the seven days of the week as JSON, an array of strings under the key items."
    schema = {"type": "object", "properties": {"items": {"type": "array", "items": {"type": "string"}}}}
    constraint = Constraint.json_schema({**schema, "required": ["items"]})
    text = text_of(deltas_of(engine, question(tokenizer, days), constraint=constraint))
    assert {"Monday", "Tuesday", "Wednesday"} <= set(re.findall(r'"(\w+)"', text)), text


def test_an_answer_that_is_complete_goes_on_with_nothing_where_the_end_is_ignored(
    engine: TransformersEngine, ids: list[int]
) -> None:
    ended = deltas_of(engine, ids, constraint=DIGITS)
    ignoring = deltas_of(engine, ids, constraint=DIGITS, ignore_eos=True, max_new_tokens=16)
    assert text_of(ended) == text_of(ignoring)
    assert ended[-1].finish_reason == "stop"
    assert (len(tokens_of(ignoring)), ignoring[-1].finish_reason) == (16, "length")


def test_a_stop_string_ends_json_where_it_stands(engine: TransformersEngine, ids: list[int]) -> None:
    deltas = deltas_of(engine, ids, constraint=CITY, stop=('"people"',))
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
def test_no_parameter_leads_out_of_the_form(engine: TransformersEngine, ids: list[int], params: dict[str, Any]) -> None:
    constraint = Constraint("regex", "(7 ){5}")
    assert text_of(deltas_of(engine, ids, constraint=constraint, **params)) == "7 " * 5


def test_an_answer_that_breaks_off_leaves_the_grammar_as_it_was(engine: TransformersEngine, ids: list[int]) -> None:
    whole = text_of(deltas_of(engine, ids, constraint=CITY))
    broken_off = engine.generate(Prompt([], ids), GenerationParams(temperature=0, constraint=CITY))
    assert [next(broken_off) for _ in range(5)]
    broken_off.close()
    assert text_of(deltas_of(engine, ids, constraint=CITY)) == whole


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint.json_schema({"type": "objekt"}), "this JSON schema cannot be followed: Invalid type: objekt."),
        (Constraint.json_schema({"type": "array", "uniqueItems": True}), 'keys: ["uniqueItems"].'),
        (Constraint.json_schema({"$ref": "http://example.com/x"}), "does not fetch resources."),
        (Constraint.json_schema({"type": "object", "properties": {"a": False}, "required": ["a"]}), "unsatisfiable."),
        (Constraint("json_schema", "[1]"), "this JSON schema cannot be followed: Expecting object"),
        (Constraint("json_schema", "{"), "this JSON schema cannot be followed: EOF"),
        (Constraint("regex", "a("), "this regular expression cannot be followed: "),
        (Constraint("lark", "start: foo"), 'this grammar cannot be followed: at 1(8): unknown name: "foo"'),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused_with_what_is_wrong(
    engine: TransformersEngine, constraint: Constraint, message: str
) -> None:
    with pytest.raises(InvalidValue, match=rf"^constraint: .*{re.escape(message)}") as error:
        engine.check(GenerationParams(constraint=constraint))
    assert len(error.value.detail) < 400
    assert "\n" not in error.value.detail


def test_a_schema_that_takes_years_to_work_out_is_refused(engine: TransformersEngine) -> None:
    """As long as the process that tries it is alive, this test does not end."""
    patterns = [{"type": "string", "pattern": f".*a.{{{length}}}b.*"} for length in range(1, 30)]
    with pytest.raises(InvalidValue, match=r"^constraint: this JSON schema is too complex; "):
        engine.check(GenerationParams(constraint=Constraint.json_schema({"allOf": patterns})))


def test_a_schema_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(sys.getrecursionlimit()):
        schema = {"items": schema}
    with pytest.raises(InvalidValue, match="nested too deeply"):
        Constraint.json_schema(schema)


def test_a_grammar_that_becomes_too_complex_fails_its_own_answer_alone(
    engine: TransformersEngine, ids: list[int]
) -> None:
    alone = tokens_of(deltas_of(engine, ids, max_new_tokens=16))
    begin = threading.Barrier(2)

    def ask(constraint: Constraint | None) -> list[Delta]:
        begin.wait(PATIENCE)
        return deltas_of(engine, ids, constraint=constraint, max_new_tokens=16)

    with ThreadPoolExecutor(2) as threads:
        failing = threads.submit(ask, Constraint("regex", "((a{1000}){1000}){1000}"))
        free = threads.submit(ask, None)
        with pytest.raises(InvalidValue, match=r"^constraint: cannot be followed to its end: [^\n<]+\.$"):
            failing.result()
        assert tokens_of(free.result()) == alone


class Says(TokenSampler):
    """Takes the first token that is allowed, or one that is not."""

    def __init__(self, *, obeys: bool) -> None:
        self.obeys = obeys

    def sample(
        self, logits: torch.Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
    ) -> list[int]:
        return [(row > -torch.inf).int().argmax().item() if self.obeys else 2 for row in logits]


def test_a_sampler_of_ones_own_is_shown_what_is_allowed_and_held_to_it(model: Any, tokenizer: Any) -> None:
    sampler = Says(obeys=True)
    engine = TransformersEngine(model, tokenizer, token_sampler=sampler)
    engine.load(slots=1, context_len=64)
    assert re.fullmatch(DIGITS.text, text_of(deltas_of(engine, [5, 6, 7], constraint=DIGITS, max_new_tokens=20)))
    sampler.obeys = False
    with pytest.raises(ValueError, match="must not return 2, which the answer's constraint excludes"):
        deltas_of(engine, [5, 6, 7], constraint=DIGITS, max_new_tokens=20)
    engine.close()


def test_without_llguidance_the_refusal_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    engine = TransformersEngine(tiny(), BYTES)
    engine.load(slots=1, context_len=64)
    engine.check(GenerationParams())
    with pytest.raises(InvalidValue, match=r"pip install 'aiochatstream\[constrained\]'"):
        engine.check(GenerationParams(constraint=DIGITS))
    engine.close()


def test_a_tokenizer_or_an_engine_that_cannot_follow_one_refuses_it() -> None:
    engine = TransformersEngine(tiny(), BYTES)
    engine.load(slots=1, context_len=64)
    for one in (engine, FunctionEngine(echo), ScriptedEngine()):
        with pytest.raises(InvalidValue, match=r"^constraint: "):
            one.check(GenerationParams(constraint=DIGITS))
    engine.close()
