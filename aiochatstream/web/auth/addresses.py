"""Addresses of clients and of this machine, compared as numbers instead of text."""

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
    """Yield the host of the request target, if that is an absolute URL, and those of the Host headers."""
    if not request.raw_path.startswith("/"):
        yield host_name(request.url.raw_authority)
    yield from map(host_name, filter(None, request.headers.getall(hdrs.HOST, ())))


def is_loopback_host(host: str) -> bool:
    """Return True if ``host``, from :func:`host_name`, is a loopback name or address."""
    address = parse_address(host)
    return host == "localhost" or host.endswith(".localhost") if address is None else address.is_loopback


def is_loopback_connection(request: web.Request) -> bool | None:
    """Return True if the server's end of the connection has a loopback address; None for a Unix socket."""
    name = request.get_extra_info("sockname", ("127.0.0.1", 0))  # loopback, the stricter case, after a disconnect
    if not isinstance(name, tuple):
        return None
    address = parse_address(str(name[0]))
    return address is not None and address.is_loopback


def is_local_request(request: web.Request) -> bool:
    """Return True for a request from this machine, not through a proxy, and with a loopback host name."""
    address = parse_address(request.remote or "")
    if address is None or not address.is_loopback:
        return False
    return all(map(is_loopback_host, hosts_of(request))) and not any(
        header in request.headers for header in PROXY_HEADERS
    )
