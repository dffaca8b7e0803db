"""Origins of the pages that may send requests."""

from __future__ import annotations

import re
from collections.abc import Collection

from aiohttp import hdrs, web
from yarl import URL

from aiochatstream.errors import Forbidden

SAFE_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})


def checked_origins(origins: object) -> frozenset[str]:
    """The origins as browsers write them. Raises ValueError for what is none."""
    if not isinstance(origins, list | tuple | set | frozenset):
        raise ValueError("allowed_origins: must be a list of origins, each as 'https://app.example'.")
    return frozenset(map(_checked, origins))


def _checked(origin: object) -> str:
    if origin == "*":
        raise ValueError("allowed_origins: '*' is not possible, because answers belong to a user; name each origin.")
    if isinstance(origin, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\\\s]+", origin):
        try:
            return str(URL(origin).origin())
        except ValueError:
            pass
    raise ValueError(f"allowed_origins: must be scheme://host or scheme://host:port, without a path, not {origin!r}.")


def check_origin(request: web.Request, allowed: Collection[str]) -> None:
    """Let pass what no page has sent, a page of this very host, or one of an ``allowed`` origin.

    Where the browser says itself how the page's site relates to this one (Sec-Fetch-Site), that decides: the Host
    header may be a proxy's. Raises :class:`~aiochatstream.errors.Forbidden`.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get(hdrs.ORIGIN)
    if origin in allowed:
        return
    if site in ("same-origin", "none"):
        return
    if site is None and (origin is None or _is_of_host(origin, request.headers.get(hdrs.HOST, ""))):
        return
    host = request.headers.get(hdrs.HOST, "")
    raise Forbidden(
        f"The page that sent this request is of an origin that this server does not allow ({(origin or site)!r}, for "
        f"the host {host!r}). Behind a proxy, pass the Host header on (nginx: proxy_set_header Host $http_host). For a "
        f"page of another origin, add that to ChatStream(allowed_origins=[...])."
    )


def _is_of_host(origin: str, host: str) -> bool:
    try:
        page = URL(origin)
        here = URL(f"{page.scheme}://{host}")
        return page.host is not None and (page.host, page.port) == (here.host, here.port)
    except ValueError:
        return False
