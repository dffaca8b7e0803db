"""HTTP connections to one upstream server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
from yarl import URL

from aiochatstream.engines.upstream.upstream import Upstream

MAX_OPENING = 64
"""Maximum number of connections to one server that are being opened at a time; the others wait. More of them overflow
the queue of the server's socket, and each then waits a second or more for the kernel's next attempt."""

KEEP_ALIVE = 4.0
"""Seconds to keep an idle connection: less than the 5 s after which uvicorn and llama.cpp close it."""


MAX_JSON_BYTES = 1 << 20
"""Maximum size of a list of models or servers, and of a count of tokens."""


class UpstreamSession:
    """HTTP client of one server. It sends the API key, verifies TLS, and uses neither cookies, proxies nor redirects.

    Created on the event loop.

    :param upstream: the server; no name or list of servers.
    :param connect: seconds to open a connection, with the name look-up and TLS.
    """

    base_url: str
    """URL of the server without ``/v1``; ``http://localhost`` for a unix socket."""

    def __init__(self, upstream: Upstream, connect: float) -> None:
        connector: _TCPConnector | _UnixConnector
        if upstream.url.startswith("unix:"):
            self.base_url = "http://localhost"
            connector = _UnixConnector(upstream.url.removeprefix("unix:"), limit=0, keepalive_timeout=KEEP_ALIVE)
        else:
            self.base_url = upstream.url
            connector = _TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE)
        connector.seconds = connect
        url = URL(self.base_url)
        addresses = () if upstream.url.startswith("unix:") else (f"//{url.raw_host}", f"{url.raw_host}:{url.port}")
        secrets = [*addresses, *filter(None, [upstream.api_key])]
        self._secrets = [secret.encode() for secret in secrets]
        headers = {"Accept-Encoding": "identity"}  # compressed streams cost both sides CPU time for each token
        if upstream.api_key is not None:
            headers["Authorization"] = f"Bearer {upstream.api_key}"
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None),
            trust_env=False,
        )

    def request(self, method: str, path: str, **options: Any) -> aiohttp.client._RequestContextManager:
        """Return a request, to be used in ``async with``.

        There is no time limit except the one of opening a connection, unless ``timeout`` is one of ``options``.

        :param path: begins with ``/``, for example ``/v1/models``.
        :param options: of :meth:`aiohttp.ClientSession.request`.
        """
        url = URL(self.base_url + path, encoded=True)
        return self._session.request(method, url, allow_redirects=False, **options)

    async def read_json(self, response: aiohttp.ClientResponse) -> Any:
        """Return the JSON of ``response``, of at most :data:`MAX_JSON_BYTES`. Raise ValueError if it is none."""
        text = b""
        while data := await response.content.readany():
            text += data
            if len(text) > MAX_JSON_BYTES:
                raise ValueError(f"the response: must have at most {MAX_JSON_BYTES} bytes.")
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("the response: must not be nested deeply.") from None

    def is_exposed_by(self, text: bytes) -> bool:
        """Return True if ``text`` contains the server's address or the API key."""
        return any(secret in text for secret in self._secrets)

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._session.closed

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


class _LimitedConnector(aiohttp.BaseConnector):
    """Connector that opens at most :data:`MAX_OPENING` connections at a time, each within ``seconds``."""

    seconds: float

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._opening = asyncio.Semaphore(MAX_OPENING)

    async def _create_connection(self, *args: Any) -> Any:
        async with self._opening, asyncio.timeout(self.seconds):
            return await super()._create_connection(*args)


class _TCPConnector(_LimitedConnector, aiohttp.TCPConnector):
    """TCP connections."""


class _UnixConnector(_LimitedConnector, aiohttp.UnixConnector):
    """Connections to a unix socket."""
