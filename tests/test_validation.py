"""Errors of pydantic models as sentences."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from aiochatstream.validation import alternatives, validated


def test_the_schema_for_errors_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counter(BaseModel):
        count: Annotated[int, Field(ge=1, description="a whole number from 1")]

    schemas: list[dict[str, Any]] = []

    def build() -> dict[str, Any]:
        schemas.append(schema)
        return schema

    schema = Counter.model_json_schema()
    monkeypatch.setattr(Counter, "model_json_schema", build)
    for _ in range(3):
        with pytest.raises(ValueError, match="count: must be a whole number from 1"):
            validated(Counter, {"count": 0})
    assert len(schemas) == 1


def test_alternatives_are_words() -> None:
    assert alternatives(["a"]) == "'a'"
    assert alternatives(["a", "b"]) == "'a' or 'b'"
    assert alternatives(["a", "b", "c"]) == "'a', 'b' or 'c'"
