"""CORS for pages of allowed origins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiohttp import hdrs, web
from aiohttp_cors import CorsConfig

from aiochatstream.sessions.agent import SKIP_HEADER
from aiochatstream.web.auth.access import AUTH_HEADER
from aiochatstream.web.streaming.formats import DEV_TOOL_HEADER, MESSAGE_ID_HEADER, WIRE_HEADER

EXPOSED_HEADERS = (MESSAGE_ID_HEADER, DEV_TOOL_HEADER, hdrs.RETRY_AFTER)
ALLOWED_HEADERS = (hdrs.CONTENT_TYPE, WIRE_HEADER, SKIP_HEADER, AUTH_HEADER)

PREFLIGHT_SECONDS = 600
"""Seconds that browsers may cache a preflight response."""


def allow_origins(
    app: web.Application,
    routes: Iterable[web.AbstractRoute],
    origins: Iterable[str],
    *,
    allow_headers: Sequence[str] = ALLOWED_HEADERS,
    expose_headers: Sequence[str] = EXPOSED_HEADERS,
) -> None:
    """Answer preflight requests of ``routes``, and allow pages of ``origins`` to read the responses.

    :param allow_headers: request headers that these pages may send; ``"*"`` for any.
    :param expose_headers: response headers that these pages may read.
    """
    options = {
        "allow_credentials": True,
        "expose_headers": expose_headers,
        "allow_headers": allow_headers,
        "max_age": PREFLIGHT_SECONDS,
    }
    cors = CorsConfig(app)  # separate from the app's: it applies to these routes only
    for route in routes:
        cors.add(route, dict.fromkeys(origins, options))
