"""Rendering of the OpenAPI document as a static HTML page, without scripts and external resources."""

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
"""Placeholder in the page for the origin of the request, such as ``http://127.0.0.1:8080``."""


class Description(NamedTuple):
    """The endpoints of a server in an application, described as JSON and as a page that contains :data:`ORIGIN`."""

    json: bytes
    page: str


def render(document: Mapping[str, Any]) -> str:
    """Return the page of an OpenAPI document from :mod:`aiochatstream.web.openapi.document`."""
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
            _row(f"{param['name']} ({param['in']})", param["schema"], required=param.get("required", False))
            for param in operation["parameters"]
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
    types = "<br>".join(f"<code>{escape(media)}</code>: {_type(body['schema'])}" for media, body in content.items())
    return f"<tr><th>{status}</th><td>{escape(response['description'])}</td><td>{types}</td></tr>"


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    fields = schema.get("properties", {}).items()
    rows = "".join(_row(field, field_schema, required=field in required) for field, field_schema in fields)
    description = f"<p>{_words(schema['description'])}</p>" if "description" in schema else ""
    body = f"<table>{rows}</table>" if rows else f"<p>{_type(schema)}</p>"
    # the id is inside the details element, so that a link to it opens the element
    content = f'<div id="{escape(name)}">{description}{body}</div>'
    return f"<details><summary><code>{escape(name)}</code></summary>{content}</details>"


def _row(name: str, schema: Mapping[str, Any], *, required: bool) -> str:
    options = (schema, *schema.get("anyOf", ()))
    description = next((option["description"] for option in options if "description" in option), "")
    optional = "" if required else "optional"
    return (
        f"<tr><th><code>{escape(name)}</code></th><td>{_type(schema)}</td><td>{optional}</td>"
        f"<td>{_words(description)}</td></tr>"
    )


def _words(text: str) -> str:
    """Return ``text`` as HTML, with the parts between backticks as code."""
    return re.sub("`+([^`]+)`+", r"<code>\1</code>", escape(text))


def _type(schema: Mapping[str, Any]) -> str:
    """Return a short name of the type, with a link to its definition."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return " | ".join(dict.fromkeys(map(_type, schema[keyword])))
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " | ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(str(schema.get("type", "anything")))
