"""Constraints on the form of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aiochatstream.errors import InvalidValue

ConstraintKind = Literal["json_object", "json_schema", "regex", "lark"]

JSON_OPTIONS: Mapping[str, Any] = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": r"(\n {0,16}| )?",
    "lenient": False,
}
"""Options of llguidance for JSON, which take precedence over ``x-guidance`` in the schemas of clients.

Whitespace between JSON tokens is empty, a space, or a newline with indentation: models tend to write empty arrays if a
grammar forbids the whitespace of their training data. It is bounded because small models may continue it endlessly.
``bench/constrained.py`` compares the alternatives."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """Form of an answer. Tokens that would violate it are never sampled, and the answer ends when it is complete.

    An answer that ``max_new_tokens``, a stop string or its client cuts off is incomplete. :data:`JSON_OPTIONS` define
    the whitespace of JSON.

    kind: ``json_object``, ``json_schema``, ``regex``, or ``lark``, a grammar in llguidance's syntax,
        https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. (A rule may be a schema, ``%json {...}``,
        with its own options under ``x-guidance``.)
    text: the schema as JSON, the regular expression or the grammar; empty for ``json_object``.
    """

    kind: ConstraintKind
    text: str = ""

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Constraint:
        """Return a constraint to JSON of ``schema``, with properties in the schema's order.

        Raise :class:`~aiochatstream.errors.InvalidValue` for a schema that is nested too deeply.
        """
        try:
            return cls("json_schema", json.dumps(schema, ensure_ascii=False))
        except RecursionError:
            raise InvalidValue("constraint: the JSON schema is nested too deeply.") from None
