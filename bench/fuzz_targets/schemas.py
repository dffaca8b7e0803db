"""Schemas, patterns and grammars that break the compiler of grammars, or its process.

Each input is compiled as the server compiles it, with the tokenizer of the small model, and then followed for some
tokens. It must be refused with InvalidValue or followed; within bounds of time, and without the end of the process that
serves all answers. Crashes in trials are the trial's purpose and are no findings.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from aiochatstream import Constraint
from aiochatstream.engines.transformers import small_model
from aiochatstream.engines.transformers.grammars import Grammars
from aiochatstream.errors import InvalidValue
from aiochatstream.web.openai.chat_request import FunctionDefinition
from aiochatstream.web.openai.tool_calls import named_call_constraint, required_calls_constraint
from fuzz_targets import Findings, rounds

EXAMPLES = 25
"""Inputs of a round."""

MAX_CHARACTERS = 100_000
"""Length of a part that is repeated; the whole may be somewhat longer."""

TOKENS = 40
"""Tokens that an answer is followed for."""

MAX_SECONDS = 90.0
"""Seconds of wall-clock time for one input, on a busy machine."""

NUMBERS = st.sampled_from([0, 1, 2, 7, 100, 1000, 10**5, 10**9, 2**63, -1, 0.5, 1e300, 1e-9])
PATTERNS = st.recursive(
    st.sampled_from(["a", ".", r"\d", r"\w", "[^x]", r"\p{L}", "^", "$", r"\b", "", "日", "\ud83d", "(?=a)", "[a-"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{50}", "{1000}", "{0,99999}", "{3,}", "*?"])).map(
            lambda parts: f"({parts[0]}){parts[1]}"
        ),
        st.lists(inner, min_size=2, max_size=4).map("|".join),
        st.lists(inner, min_size=2, max_size=4).map("".join),
        st.tuples(inner, st.integers(1, 3000)).map(lambda parts: "(" * parts[1] + parts[0] + ")" * parts[1]),
        st.tuples(inner, st.integers(1, 500)).map(
            lambda parts: parts[0] * min(parts[1], MAX_CHARACTERS // (len(parts[0]) + 1))
        ),
    ),
    max_leaves=8,
)
SIZES = st.sampled_from([2, 3, 10, 40, 300, 2000])
NAMES = st.one_of(st.sampled_from(["a", "b", "日本", "\ud83d", "", '"', "x" * 5000]), st.text(max_size=4))
LITERALS = st.one_of(NUMBERS, NAMES, st.booleans(), st.none(), st.lists(NAMES, max_size=2))
REFERENCES = st.sampled_from(
    ["#", "#/$defs/a", "#/$defs/b", "#/$defs/none", "#/properties/a", "http://example.com/x", ""]
)
KEYWORDS: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(
        ["object", "array", "string", "integer", "number", "null", "boolean", ["string", "null"], "x"]
    ),
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"), NUMBERS),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), NUMBERS),
    "pattern": PATTERNS,
    "format": st.sampled_from(["date", "date-time", "time", "email", "uuid", "ipv4", "ipv6", "uri", "hostname", "x"]),
    "const": LITERALS,
    "$ref": REFERENCES,
    "x-guidance": st.sampled_from([{"lenient": True}, {"whitespace_pattern": "(a*)*"}, {"coerce_one_of": True}, 1]),
}


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return schemas with ``inner`` as their parts."""
    many = st.lists(inner, min_size=1, max_size=3)
    named = st.dictionaries(NAMES, inner, max_size=4)
    parts = {
        "items": inner, "additionalProperties": inner, "not": inner, "if": inner, "then": inner, "contains": inner,
        "prefixItems": many, "anyOf": many, "oneOf": many, "allOf": many,
        "properties": named, "$defs": named, "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
        "required": st.lists(NAMES, max_size=3),
        "enum": st.one_of(st.lists(LITERALS, max_size=4), st.integers(1, 30_000).map(choices)),
    }  # fmt: skip
    return st.one_of(
        st.fixed_dictionaries({}, optional={**KEYWORDS, **parts}),
        st.tuples(inner, st.sampled_from(["items", "anyOf", "allOf", "properties", "$ref"]), st.integers(1, 3000)).map(
            nest
        ),
        st.tuples(inner, st.sampled_from(["properties", "allOf", "anyOf", "prefixItems"]), st.integers(1, 2000)).map(
            widen
        ),
    )


def choices(count: int) -> list[str]:
    """Return as many strings."""
    return [f"c{number}" for number in range(count)]


def times(schema: Any) -> int:
    """Return how often ``schema`` may be repeated."""
    return MAX_CHARACTERS // (len(json.dumps(schema)) + 1)


def nest(drawn: tuple[Any, str, int]) -> Any:
    """Return a schema within itself many times; by references where JSON could not be nested so deeply."""
    schema, keyword, depth = drawn
    depth = min(depth, times(schema))
    made: dict[str, Any] = {f"d{depth}": schema}
    for at in range(depth):
        link = {"$ref": f"#/$defs/d{at + 1}"}
        value = {"$ref": link["$ref"], "items": link, "properties": {"a": link}}.get(keyword, [link, {"type": "null"}])
        made[f"d{at}"] = {keyword: value}
    return {"$ref": "#/$defs/d0", "$defs": made}


def widen(drawn: tuple[Any, str, int]) -> Any:
    """Return a schema beside itself many times."""
    schema, keyword, width = drawn
    width = min(width, times(schema))
    if keyword == "properties":
        return {"type": "object", "properties": {f"p{at}": schema for at in range(width)}}
    return {keyword: [schema] * width}


SCHEMAS = st.recursive(
    st.one_of(
        st.booleans(), st.fixed_dictionaries({}, optional=KEYWORDS), st.fixed_dictionaries({"type": KEYWORDS["type"]})
    ),
    objects,
    max_leaves=8,
).map(lambda schema: schema if isinstance(schema, dict) else {"items": schema})
FUNCTIONS = st.lists(SCHEMAS, min_size=1, max_size=3).map(
    lambda schemas: [FunctionDefinition(name=f"f{at}", parameters=schema) for at, schema in enumerate(schemas)]
)
CONSTRAINTS: st.SearchStrategy[Constraint] = st.one_of(
    SCHEMAS.map(Constraint.json_schema),
    FUNCTIONS.map(lambda functions: named_call_constraint(functions[0])),
    FUNCTIONS.map(lambda functions: required_calls_constraint(functions, parallel=True)),
    PATTERNS.map(lambda pattern: Constraint("regex", pattern)),
    PATTERNS.map(
        lambda pattern: Constraint("lark", f"start: /{pattern}/ start | start start | {json.dumps(pattern)}?")
    ),
)


def follow(grammars: Grammars, constraint: Constraint, choice: random.Random) -> None:
    """Compile ``constraint`` and follow it for some tokens. Raises InvalidValue where the server would."""
    matcher = grammars.matcher(constraint)
    for _ in range(TOKENS):
        allowed = np.flatnonzero(np.unpackbits(matcher.mask.view(np.uint8), bitorder="little"))
        if not len(allowed):
            return
        matcher.advance(int(choice.choice(allowed)))


def fuzz(seconds: float, seed: int) -> Findings:
    """Search for constraints that end or hold up the process that serves all answers."""
    tokenizer = AutoTokenizer.from_pretrained(small_model())
    found = Findings()
    grammars = Grammars(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
    end = time.monotonic() + seconds

    def examine(constraint: Constraint) -> None:
        if time.monotonic() > end:
            return
        found.tried += 1
        process, began = grammars.process(), time.monotonic()
        try:
            follow(grammars, constraint, random.Random(found.tried))  # noqa: S311 - no secret
        except InvalidValue:
            pass
        except Exception as error:  # noqa: BLE001 - any other error is the finding
            found.faults.append(f"{error!r}: {constraint!r:.2000}")
        took = time.monotonic() - began
        if process.ended:
            found.faults.append(f"the serving process ended: {constraint!r:.2000}")
        if took > MAX_SECONDS:
            found.faults.append(f"took {took:.0f} s: {constraint!r:.2000}")

    for number in rounds(seconds, seed):
        checks = list(HealthCheck)
        options = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=checks)
        hypothesis.seed(number)(options(given(CONSTRAINTS)(examine)))()
    grammars.close()
    return found
