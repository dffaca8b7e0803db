"""IP addresses of clients."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from aiohttp import web

IPV6_HOST_BITS = 64
"""Length of the network prefix of an IPv6 address; a host chooses the remaining bits itself."""


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address in ``text``; None for other text.

    An IPv4-mapped address (``::ffff:192.0.2.1``), as a socket for both protocols reports it, is the IPv4 address.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def client_network(request: web.Request) -> str:
    """Return the network address of the client: its IPv4 address, or the /64 network of its IPv6 address."""
    remote = request.remote or "unknown"
    address = parse_address(remote)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), IPV6_HOST_BITS), strict=False))
    return remote if address is None else str(address)
