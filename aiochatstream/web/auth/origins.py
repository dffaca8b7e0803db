"""Checks of the Origin header, against cross-site requests."""

from __future__ import annotations

import re
from collections.abc import Collection

from aiohttp import hdrs, web
from yarl import URL

from aiochatstream.errors import Forbidden

SAFE_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})


def normalize_origins(origins: object) -> frozenset[str]:
    """Return ``origins`` in the form that browsers send. Raises ValueError for invalid origins."""
    if not isinstance(origins, list | tuple | set | frozenset):
        raise ValueError(f"allowed_origins: must be a list of origins such as 'https://app.example', not {origins!r}.")
    return frozenset(map(_normalize, origins))


def _normalize(origin: object) -> str:
    if origin == "*":
        raise ValueError("allowed_origins: must list each origin, not '*': requests carry the users' cookies.")
    if isinstance(origin, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\\\s]+", origin):
        try:
            return str(URL(origin).origin())
        except ValueError:
            pass
    raise ValueError(f"allowed_origins: must be scheme://host or scheme://host:port, without a path, not {origin!r}.")


def check_origin(request: web.Request, allowed: Collection[str]) -> None:
    """Reject cross-site requests. Non-browser clients, same-host pages and ``allowed`` origins pass.

    If the browser sends Sec-Fetch-Site, that header decides, because a proxy may have replaced the Host header.
    Raises :class:`~aiochatstream.errors.Forbidden`.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get(hdrs.ORIGIN)
    if origin in allowed:
        return
    if site in ("same-origin", "none"):
        return
    if site is None and (origin is None or _is_same_host(origin, request.headers.get(hdrs.HOST, ""))):
        return
    host = request.headers.get(hdrs.HOST, "")
    raise Forbidden(
        f"Cross-site request from {(origin or site)!r} to the host {host!r}. Behind a proxy, forward the Host header "
        f"(nginx: proxy_set_header Host $http_host). To allow pages of another origin, add it to "
        f"ChatStream(allowed_origins=[...])."
    )


def _is_same_host(origin: str, host: str) -> bool:
    try:
        page = URL(origin)
        server = URL(f"{page.scheme}://{host}")
        return page.host is not None and (page.host, page.port) == (server.host, server.port)
    except ValueError:
        return False
