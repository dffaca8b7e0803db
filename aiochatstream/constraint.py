"""What form an answer is to have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aiochatstream.errors import InvalidValue

ConstraintKind = Literal["json_object", "json_schema", "regex", "lark"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """The answer is text of this form: of no token is drawn what would break it, and where it is complete it ends.

    An answer that is cut by ``max_new_tokens``, a stop string or its client is only a beginning. JSON is written
    without spaces and line breaks.

    kind: ``json_object``, ``json_schema``, ``regex``, or ``lark``, a grammar as llguidance reads it:
        https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. (A rule may be ``%json {...}``, a schema;
        that says ``"x-guidance": {"whitespace_flexible": false}`` itself where it is to be without spaces.)
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
