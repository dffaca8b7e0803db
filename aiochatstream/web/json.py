"""JSON encoding and JSON responses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from pydantic_core import to_json

COMMON_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def dumps(data: Any) -> str:
    """Return ``data`` as compact JSON on one line, without escaping non-ASCII text."""
    return _ENCODER.encode(data)


def json_response(data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a JSON response that caches do not store."""
    return web.Response(
        body=to_json(data, inf_nan_mode="null"),
        status=status,
        headers={**COMMON_HEADERS, **(headers or {})},
        content_type="application/json",
        charset="utf-8",
    )
