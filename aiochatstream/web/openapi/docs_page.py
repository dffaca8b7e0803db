"""The endpoints' description as a page: plain HTML, which loads nothing and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
summary { cursor: pointer; padding: .3rem 0; }
summary code { font-weight: 600; }
details { border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
details > :not(summary) { margin-left: 1.5rem; }
h3 { font-size: 1rem; }
h1, summary { overflow-wrap: anywhere; }
table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; }
th { white-space: nowrap; }
[id] { scroll-margin-top: 3rem; }
@media (max-width: 40rem) {
  tr { display: block; margin-bottom: .5rem; }
  th, td { display: inline-block; max-width: 100%; padding: 0 .8rem 0 0; white-space: normal; overflow-wrap: anywhere; }
}
pre { overflow-x: auto; padding: .5rem; background: color-mix(in srgb, currentColor 8%, transparent); }
:root { color-scheme: light dark; }
"""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)


ORIGIN = "http://ORIGIN"
"""Stands in the page for the origin at which it is asked for, such as ``http://127.0.0.1:8080``."""


class Description(NamedTuple):
    """The endpoints of one server in one application, as JSON and as a page that contains :data:`ORIGIN`."""

    json: bytes
    page: str


def render(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document that :mod:`aiochatstream.web.openapi.document` has made."""
    by_tag: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault(operation["tags"][0], []).append(_operation(method, path, operation))
    sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(operations)}" for tag, operations in by_tag.items())
    schemas = "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><main>'
        f'<h1>{title}</h1><p>For programs: <a href="openapi.json">openapi.json</a></p>'
        f"{sections}<h2>Types</h2>{schemas}</main></body></html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<p>{_words(operation['description'])}</p>" if "description" in operation else ""]
    if "parameters" in operation:
        rows = (
            _row(f"{one['name']} ({one['in']})", one["schema"], required=one.get("required", False))
            for one in operation["parameters"]
        )
        parts.append(f"<h3>Parameters</h3><table>{''.join(rows)}</table>")
    command = f"curl {'-X DELETE ' if method == 'delete' else ''}{ORIGIN}{path}"
    if "security" in operation:
        command += " -H 'Authorization: Bearer KEY'"
    if "requestBody" in operation:
        for media, content in operation["requestBody"]["content"].items():
            parts.append(f"<h3>Body</h3><p><code>{escape(media)}</code>: {_type(content['schema'])}</p>")
            command += f" -H 'Content-Type: {media}' -d '{{...}}'"
    rows = (_response(status, response) for status, response in operation["responses"].items())
    parts.append(f"<h3>Answers</h3><table>{''.join(rows)}</table><pre>{escape(command)}</pre>")
    head = f"<code>{method.upper()} {escape(path)}</code> {_words(operation['summary'])}"
    return f"<details><summary>{head}</summary>{''.join(parts)}</details>"


def _response(status: str, response: Mapping[str, Any]) -> str:
    content = response.get("content", {})
    kinds = "<br>".join(f"<code>{escape(media)}</code>: {_type(one['schema'])}" for media, one in content.items())
    return f"<tr><th>{status}</th><td>{escape(response['description'])}</td><td>{kinds}</td></tr>"


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    fields = schema.get("properties", {}).items()
    rows = "".join(_row(field, one, required=field in required) for field, one in fields)
    told = f"<p>{_words(schema['description'])}</p>" if "description" in schema else ""
    body = f"<table>{rows}</table>" if rows else f"<p>{_type(schema)}</p>"
    # within what is folded: a link to it unfolds it then
    folded = f'<div id="{escape(name)}">{told}{body}</div>'
    return f"<details><summary><code>{escape(name)}</code></summary>{folded}</details>"


def _row(name: str, schema: Mapping[str, Any], *, required: bool) -> str:
    told = next((one["description"] for one in (schema, *schema.get("anyOf", ())) if "description" in one), "")
    need = "" if required else "optional"
    return (
        f"<tr><th><code>{escape(name)}</code></th><td>{_type(schema)}</td><td>{need}</td><td>{_words(told)}</td></tr>"
    )


def _words(text: str) -> str:
    """Text, and code between backticks."""
    return re.sub("`+([^`]+)`+", r"<code>\1</code>", escape(text))


def _type(schema: Mapping[str, Any]) -> str:
    """A type in few words, with a link to where more is said."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " | ".join(dict.fromkeys(map(_type, schema[several])))
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " | ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(str(schema.get("type", "anything")))
