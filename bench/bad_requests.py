"""Malformed requests, which a server must reject with 4xx."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

JSON = "application/json"


@dataclass(frozen=True)
class BadRequest:
    """A malformed request."""

    name: str
    body: bytes = b""
    method: str = "POST"
    path: str = "/chat_stream"
    content_type: str = JSON


def _with_schema(name: str, schema: dict[str, Any]) -> BadRequest:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "hello"}], "response_format": form}
    return BadRequest(name, json.dumps(body).encode(), path="/v1/chat/completions")


def _chain(length: int) -> dict[str, Any]:
    """Return a schema whose definitions each refer to the next one."""
    links = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(length)}
    return {"$defs": {**links, f"d{length}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def _with_body(name: str, body: Any) -> BadRequest:
    return BadRequest(name, json.dumps(body).encode())


BAD_REQUESTS = (
    BadRequest("no body"),
    BadRequest("truncated JSON", b'{"user_input": "he'),
    BadRequest("invalid UTF-8", b'{"user_input": "\xff\xfe"}'),
    BadRequest("deep JSON", b"[" * 10_000),
    BadRequest("another media type", b"user_input=hello", content_type="application/x-www-form-urlencoded"),
    BadRequest("two megabytes", json.dumps({"user_input": "a" * 2**21}).encode()),
    BadRequest("another method", method="DELETE"),
    BadRequest("another path", path="/nothing/here"),
    BadRequest("a path out of the root", path="/../../etc/passwd"),
    BadRequest("a bad name in a query", method="GET", path="/history?conversation=a%00b"),
    _with_body("a list", ["user_input", "hello"]),
    _with_body("a number as the message", {"user_input": 5}),
    _with_body("an empty message", {"user_input": "  "}),
    _with_body("a bad conversation name", {"user_input": "hello", "conversation": "../main"}),
    _with_body("a temperature out of range", {"user_input": "hello", "params": {"temperature": -1}}),
    _with_body("endless tokens", {"user_input": "hello", "params": {"max_new_tokens": 10**12}}),
    _with_body("an empty stop string", {"user_input": "hello", "params": {"stop": [""]}}),
    _with_schema("a schema that is a chain", _chain(2_500)),
    _with_schema("a recursive schema", {"$ref": "#"}),
    _with_body("regenerating in an empty conversation", {"regenerate": True, "conversation": "never-used"}),
)
