"""Checks of the Host header, against DNS rebinding.

If ``evil.example`` is made to resolve to this server's address, browsers treat its pages as of the same origin, and let
them send requests and read responses. Only the Host header distinguishes them from pages of this server.
"""

from __future__ import annotations

import re
import socket

from aiohttp import web
from yarl import URL

from aiochatstream.errors import Forbidden
from aiochatstream.sessions.client_address import parse_address
from aiochatstream.web.auth.addresses import host_name, hosts_of, is_loopback_connection, is_loopback_host

NAME = re.compile(r"(?:\*\.)?[^\s*.:/\\@?#\[\]]+(?:\.[^\s*.:/\\@?#\[\]]+)*\.?")
ANY = "*"

CONTAINER_HOSTS = frozenset({"host.docker.internal", "host.containers.internal"})
"""Host names of this machine in Docker and Podman containers, often resolved to its loopback address."""


class AllowedHosts:
    """The host names that requests to a server may use.

    IP addresses, loopback names and the machine's own names are always allowed, because no foreign page can use them.

    :param names: host names without a port, ``"*.example.com"`` for all subdomains, ``"*"`` for any name. None: any
        name for connections to a network address or a Unix socket, no further name for connections to a loopback
        address.

    Raises ValueError for invalid names.
    """

    def __init__(self, names: object = None) -> None:
        if names is not None and not isinstance(names, list | tuple | set | frozenset):
            raise ValueError(f"allowed_hosts: must be a list of host names such as 'chat.example.com', not {names!r}.")
        self._names = None if names is None else frozenset(map(_normalize, names))
        self._own_names = CONTAINER_HOSTS | _machine_names()

    def check(self, request: web.Request) -> None:
        """Raise :class:`~aiochatstream.errors.Forbidden` if a host name of ``request`` is not allowed.

        Requests without a Host header pass: no browser sends them.
        """
        if self._names is None and not is_loopback_connection(request):
            return
        for host in hosts_of(request):
            if not self._allows(host):
                raise Forbidden(_refusal(host))

    def _allows(self, host: str) -> bool:
        if is_loopback_host(host) or parse_address(host) is not None or host in self._own_names:
            return True
        return any(host == name or (name[0] == ANY and host.endswith(name[1:])) for name in self._names or ())


def _machine_names() -> frozenset[str]:
    """Return the machine's name as a single label and in mDNS.

    The full name is excluded: a foreign network may have set it, and may be able to resolve it.
    """
    label = host_name(socket.gethostname()).partition(".")[0]
    return frozenset({label, f"{label}.local"}) if label else frozenset()


def _refusal(host: str) -> str:
    name = host if NAME.fullmatch(host) and len(host) <= 253 else "NAME"
    return (
        f"The host {host[:253]!r} is not allowed. If it is a name of this server, add it to "
        f"ChatStream(allowed_hosts=[{name!r}]) or start with serve --allowed-host {name}."
    )


def _normalize(name: object) -> str:
    """Return ``name`` in the form that browsers send. Raises ValueError."""
    if name == ANY:
        return ANY
    if isinstance(name, str):
        if parse_address(name.strip("[]")) is not None:
            return name.strip("[]").lower()
        if NAME.fullmatch(name):
            is_wildcard, host = name.startswith("*."), name.removeprefix("*.").lower().removesuffix(".")
            try:
                return "*." * is_wildcard + (URL.build(scheme="http", host=host).raw_host or host)
            except ValueError:
                pass
    raise ValueError(
        f"allowed_hosts: must be host names without scheme and port, such as 'chat.example.com' or '*.example.com', "
        f"not {name!r}."
    )
