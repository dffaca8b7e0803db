"""Validation by pydantic models, with errors of one sentence that names the field and its range."""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

STRICT = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

ModelType = TypeVar("ModelType", bound=BaseModel)


def validated(model: type[ModelType], values: dict[str, Any]) -> ModelType:
    """Return ``model(**values)``. Raise ValueError with a sentence that names the field and its range."""
    try:
        return model(**values)
    except ValidationError as error:
        raise ValueError(describe(error, model)) from None


def alternatives(values: Sequence[str]) -> str:
    """Return quoted values as words: ``'a', 'b' or 'c'``."""
    *first, last = map(repr, values)
    return f"{', '.join(first)} or {last}" if first else last


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Return a sentence about the first error, with the field and its range."""
    first = error.errors(include_url=False, include_context=False)[0]
    schema = _schema_of(model)
    message = first["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be", 1).replace("Field required", "is missing", 1)
    path, sentence = [], message
    node: dict[str, Any] = schema
    for part in first["loc"]:
        inner = _inner(node, part, schema)
        if inner is None:
            break
        node = inner
        path.append(str(part))
        descriptions = [option["description"] for option in _options(node) if "description" in option]
        is_object = "properties" in _resolve(node, schema)
        sentence = f"must be {descriptions[0]}" if descriptions and not is_object else message
    if not path:
        return f"{sentence}."
    names_field = first["type"] == "value_error" and "properties" in _resolve(node, schema)
    return f"{'.'.join(path)}{'.' if names_field else ': '}{sentence}."


def describe_argument(error: ValidationError, model: type[BaseModel], values: dict[str, Any]) -> str:
    """Return a sentence about the first error in the arguments ``values`` of ``model``."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = first["loc"][0] if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown field; choose from {', '.join(model.model_fields)}."
    sentence = describe(error, model)
    return f"{sentence.removesuffix('.')}, not {reprlib.repr(values[field])}." if field in values else sentence


@functools.cache
def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema, not to be modified. Building it blocks the event loop for milliseconds."""
    return model.model_json_schema()


def _inner(node: dict[str, Any], part: str | int, schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of an object's field, or of a list's objects; None if ``part`` of the location is neither."""
    if isinstance(part, str):
        field: dict[str, Any] | None = _resolve(node, schema).get("properties", {}).get(part)
        return field
    for option in _options(node):
        items: dict[str, Any] = option.get("items", {})
        if "properties" in _resolve(items, schema):
            return items
    return None


def _options(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *node.get("anyOf", [])]


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the object schema that a node refers to; the node itself if it refers to none."""
    for option in _options(node):
        if "$ref" in option:
            resolved: dict[str, Any] = schema["$defs"][option["$ref"].rsplit("/", 1)[-1]]
            return resolved
    return node
