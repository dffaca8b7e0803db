"""Discovery of servers: by their URLs, by the addresses of a name, or in a list that another server publishes."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from yarl import URL

from aiochatstream.engines.upstream.session import UpstreamSession
from aiochatstream.engines.upstream.upstream import Upstream, validated_upstream

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Function that returns the IP addresses of a name and a port, or raises OSError."""

MAX_SERVERS = 1000
"""Maximum number of servers of a list."""

READ_SECONDS = 5.0
"""Seconds to read a list, or the addresses of a name."""


class Source(ABC):
    """A source of servers. Each of them has the slots and the API key of the source."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream

    @abstractmethod
    async def read(self) -> list[Upstream]:
        """Return the servers at present. Raise OSError, aiohttp.ClientError or ValueError if they are unknown."""

    def _server(self, url: str) -> Upstream:
        return replace(self.upstream, url=url, name=None)


class FixedSource(Source):
    """A single server."""

    async def read(self) -> list[Upstream]:
        return [self.upstream]


class DNSSource(Source):
    """All addresses of a name, for example of a headless service of Kubernetes."""

    def __init__(self, upstream: Upstream, resolve: Resolve) -> None:
        super().__init__(upstream)
        self._url = URL(upstream.url.removeprefix("dns+"))
        self._resolve = resolve

    async def read(self) -> list[Upstream]:
        async with asyncio.timeout(READ_SECONDS):
            addresses = await self._resolve(self._url.host or "", self._url.port or 80)
        return [self._server(str(self._url.with_host(address))) for address in dict.fromkeys(addresses)]


class ListSource(Source):
    """A JSON list of URLs, or an object with this list as ``upstreams``, which a server publishes.

    The API key is for the servers of the list, so this request is sent without it.
    """

    def __init__(self, upstream: Upstream, connect: float) -> None:
        super().__init__(upstream)
        url = URL(upstream.url.removeprefix("list+"))
        self._origin, self._path = str(url.origin()), url.raw_path
        self._connect = connect

    async def read(self) -> list[Upstream]:
        session = UpstreamSession(Upstream(self._origin), self._connect)
        try:
            async with (
                asyncio.timeout(READ_SECONDS),
                session.request("GET", self._path, raise_for_status=True) as response,
            ):
                urls = _urls(await session.read_json(response))
        finally:
            await session.close()
        return [self._server(url) for url in urls]


def source_of(upstream: Upstream, resolve: Resolve, connect: float) -> Source:
    """Return the source of a validated upstream."""
    if upstream.url.startswith("dns+"):
        return DNSSource(upstream, resolve)
    if upstream.url.startswith("list+"):
        return ListSource(upstream, connect)
    return FixedSource(upstream)


async def resolve(name: str, port: int) -> list[str]:
    """Return the IP addresses of ``name`` that the operating system knows. Raise OSError."""
    infos = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in infos]


def _urls(body: Any) -> list[str]:
    """Return the URLs of a list of servers, in their normal form. Raise ValueError if it is invalid."""
    urls = body.get("upstreams") if isinstance(body, dict) else body
    if not isinstance(urls, list) or not all(isinstance(url, str) and url.startswith("http") for url in urls):
        raise ValueError("the list: must be a JSON array of URLs such as http://host:8000.")
    if len(urls) > MAX_SERVERS:
        raise ValueError(f"the list: must have at most {MAX_SERVERS} URLs, not {len(urls)}.")
    return [*dict.fromkeys(validated_upstream(url).url for url in urls)]
