"""HTTP connections to one upstream server."""

from __future__ import annotations

from typing import Any

import aiohttp

from aiochatstream.engines.upstream.upstream import Upstream

MAX_OPENING = 64
"""Maximum number of connections to one server that are being opened at a time; the others wait."""


class UpstreamSession:
    """HTTP client of one server. It sends the API key, verifies TLS, and uses neither cookies, proxies nor redirects.

    :param upstream: the server; no name or list of servers.
    :param connect: seconds to open a connection.
    """

    base_url: str
    """URL of the server without ``/v1``; ``http://localhost`` for a unix socket."""

    def __init__(self, upstream: Upstream, connect: float) -> None:
        raise NotImplementedError

    def request(self, method: str, path: str, **options: Any) -> aiohttp.client._RequestContextManager:
        """Return a request, to be used in ``async with``.

        There is no time limit except the one of opening a connection, unless ``timeout`` is one of ``options``.

        :param path: begins with ``/``, for example ``/v1/models``.
        :param options: of :meth:`aiohttp.ClientSession.request`.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Close all connections."""
        raise NotImplementedError
