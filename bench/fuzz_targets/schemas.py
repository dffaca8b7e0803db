"""Schemas, patterns and grammars that break the grammar compiler or crash its process.

Each input is compiled as in the server, with the tokenizer of the small model, and then used for some tokens. The
compiler must reject it with InvalidValue or accept it, within a time limit, and the process that serves all answers
must not exit. Crashes in the trial process are expected and are not findings.
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
"""Maximum length of a repeated part. The whole text may be slightly longer."""

TOKENS = 40
"""Tokens that a grammar is used for."""

MAX_SECONDS = 90.0
"""Maximum seconds of wall-clock time for an input, on a busy machine."""

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
    """Return ``count`` strings."""
    return [f"c{number}" for number in range(count)]


def times(schema: Any) -> int:
    """Return the maximum number of repetitions of ``schema``."""
    return MAX_CHARACTERS // (len(json.dumps(schema)) + 1)


def nest(drawn: tuple[Any, str, int]) -> Any:
    """Return a schema nested in itself many times, by references because JSON has a depth limit."""
    schema, keyword, depth = drawn
    depth = min(depth, times(schema))
    made: dict[str, Any] = {f"d{depth}": schema}
    for at in range(depth):
        link = {"$ref": f"#/$defs/d{at + 1}"}
        value = {"$ref": link["$ref"], "items": link, "properties": {"a": link}}.get(keyword, [link, {"type": "null"}])
        made[f"d{at}"] = {keyword: value}
    return {"$ref": "#/$defs/d0", "$defs": made}


def widen(drawn: tuple[Any, str, int]) -> Any:
    """Return a schema that contains another many times."""
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
    """Compile ``constraint`` and use it for some tokens. Raise InvalidValue if the server would."""
    matcher = grammars.matcher(constraint)
    for _ in range(TOKENS):
        allowed = np.flatnonzero(np.unpackbits(matcher.mask.view(np.uint8), bitorder="little"))
        if not len(allowed):
            return
        matcher.advance(int(choice.choice(allowed)))


def fuzz(seconds: float, seed: int) -> Findings:
    """Search for constraints that crash or block the process that serves all answers."""
    tokenizer = AutoTokenizer.from_pretrained(small_model())
    findings = Findings()
    grammars = Grammars(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
    end = time.monotonic() + seconds

    def examine(constraint: Constraint) -> None:
        if time.monotonic() > end:
            return
        findings.tried += 1
        process, start = grammars.process(), time.monotonic()
        try:
            follow(grammars, constraint, random.Random(findings.tried))  # noqa: S311 - not security-relevant
        except InvalidValue:
            pass
        except Exception as error:  # noqa: BLE001 - any other error is the finding
            findings.faults.append(f"{error!r}: {constraint!r:.2000}")
        seconds_taken = time.monotonic() - start
        if process.ended:
            findings.faults.append(f"the serving process exited: {constraint!r:.2000}")
        if seconds_taken > MAX_SECONDS:
            findings.faults.append(f"took {seconds_taken:.0f} s: {constraint!r:.2000}")

    for number in rounds(seconds, seed):
        checks = list(HealthCheck)
        options = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=checks)
        hypothesis.seed(number)(options(given(CONSTRAINTS)(examine)))()
    grammars.close()
    return findings
