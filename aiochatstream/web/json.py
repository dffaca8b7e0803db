"""JSON on the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

COMMON_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def dumps(data: Any) -> str:
    """Compact JSON on one line; text as it is, not escaped."""
    return _ENCODER.encode(data)


def json_response(data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON response that no cache keeps."""
    return web.json_response(data, status=status, headers={**COMMON_HEADERS, **(headers or {})}, dumps=dumps)
