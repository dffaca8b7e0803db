"""What form an answer is to have."""

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
"""Options of llguidance for JSON. They take precedence over ``x-guidance`` in a schema, which comes from clients.

Whitespace between two tokens of JSON is none, a space, or a new line with its indentation: models choose empty arrays
where they may not write as they have learned. It is bounded because small models do not find the end of whitespace.
``bench/constrained.py`` compares this with other choices."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """The answer is text of this form: of no token is drawn what would break it, and where it is complete it ends.

    An answer that is cut by ``max_new_tokens``, a stop string or its client is only a beginning. The whitespace of
    JSON is as :data:`JSON_OPTIONS` say.

    kind: ``json_object``, ``json_schema``, ``regex``, or ``lark``, a grammar as llguidance reads it:
        https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. (A rule may be ``%json {...}``, a schema,
        with such options of its own under ``x-guidance``.)
    text: the schema as JSON, the regular expression or the grammar; empty for ``json_object``.
    """

    kind: ConstraintKind
    text: str = ""

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Constraint:
        """JSON of this schema, with the properties in its order.

        Raises :class:`~aiochatstream.errors.InvalidValue` for one that is nested too deeply.
        """
        try:
            return cls("json_schema", json.dumps(schema, ensure_ascii=False))
        except RecursionError:
            raise InvalidValue("constraint: the JSON schema is nested too deeply.") from None
