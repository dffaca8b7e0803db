"""Addresses of peers and of this machine, compared as numbers and not as text."""

from __future__ import annotations

from collections.abc import Iterator

from aiohttp import hdrs, web

from aiochatstream.sessions.client_address import parse_address

PROXY_HEADERS = (
    "Forwarded",
    hdrs.VIA,
    hdrs.X_FORWARDED_FOR,
    hdrs.X_FORWARDED_HOST,
    hdrs.X_FORWARDED_PROTO,
    "X-Real-IP",
)


def host_name(authority: str) -> str:
    """Return the host of ``host:port`` in lower case, without brackets and without the dot of a rooted name."""
    name = authority.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


def hosts_of(request: web.Request) -> Iterator[str]:
    """Return the hosts that ``request`` names: in its target, if that is a whole URL, and in the Host header."""
    if not request.raw_path.startswith("/"):
        yield host_name(request.url.raw_authority)
    yield from map(host_name, filter(None, request.headers.getall(hdrs.HOST, ())))


def is_loopback_host(host: str) -> bool:
    """Return True for the names and addresses by which a machine reaches itself; ``host`` is from :func:`host_name`."""
    address = parse_address(host)
    return host == "localhost" or host.endswith(".localhost") if address is None else address.is_loopback


def arrived_on_loopback(request: web.Request) -> bool | None:
    """Return whether the connection's own end has a loopback address; None for a socket without one (Unix)."""
    name = request.get_extra_info("sockname", ("127.0.0.1", 0))  # the client has left: as strict as can be
    if not isinstance(name, tuple):
        return None
    address = parse_address(str(name[0]))
    return address is not None and address.is_loopback


def comes_from_here(request: web.Request) -> bool:
    """Return True for a request of this machine itself: not through a proxy, and by a name that no DNS can give it."""
    address = parse_address(request.remote or "")
    if address is None or not address.is_loopback:
        return False
    return all(map(is_loopback_host, hosts_of(request))) and not any(
        header in request.headers for header in PROXY_HEADERS
    )
