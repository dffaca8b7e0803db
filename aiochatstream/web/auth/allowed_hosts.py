"""Host names that requests may use, against DNS rebinding.

A page of ``evil.example`` whose name is made to resolve to this server's address is of the same origin to its browser,
which then sends and reads everything. The name in the Host header is what tells it from this server's own page.
"""

from __future__ import annotations

import re
import socket

from aiohttp import web
from yarl import URL

from aiochatstream.errors import Forbidden
from aiochatstream.sessions.client_address import parse_address
from aiochatstream.web.auth.addresses import arrived_on_loopback, host_name, hosts_of, is_loopback_host

NAME = re.compile(r"(?:\*\.)?[^\s*.:/\\@?#\[\]]+(?:\.[^\s*.:/\\@?#\[\]]+)*\.?")
ANY = "*"

CONTAINER_HOSTS = frozenset({"host.docker.internal", "host.containers.internal"})
"""Names by which programs in containers of Docker and Podman reach this machine, often its loopback address."""


class AllowedHosts:
    """The names of a server.

    Addresses, loopback names and the machine's own names are always allowed: no one else's page can have them.

    :param names: host names without a port, ``"*.example.com"`` for all names below one, ``"*"`` for any. None: any
        name where the connection arrived on an address of the network or on a Unix socket, no further one where it
        arrived on a loopback address.

    Raises ValueError for other names.
    """

    def __init__(self, names: object = None) -> None:
        if names is not None and not isinstance(names, list | tuple | set | frozenset):
            raise ValueError(f"allowed_hosts: must be a list of host names, each as 'chat.example.com', not {names!r}.")
        self._names = None if names is None else frozenset(map(_normal, names))
        self._own_names = CONTAINER_HOSTS | _machine_names()

    def check(self, request: web.Request) -> None:
        """Raise :class:`~aiochatstream.errors.Forbidden` for a request by a name that is not allowed.

        A request without a Host header passes: it is of no browser.
        """
        if self._names is None and not arrived_on_loopback(request):
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

    A full name is left out: a foreign network may have set it, and may be able to resolve it.
    """
    label = host_name(socket.gethostname()).partition(".")[0]
    return frozenset({label, f"{label}.local"}) if label else frozenset()


def _refusal(host: str) -> str:
    name = host if NAME.fullmatch(host) and len(host) <= 253 else "NAME"
    return (
        f"The host {host[:253]!r} is not allowed: add it to ChatStream(allowed_hosts=[{name!r}]) or start with "
        f"serve --allowed-host {name}, if this server has that name."
    )


def _normal(name: object) -> str:
    """``name`` as browsers send it. Raises ValueError."""
    if name == ANY:
        return ANY
    if isinstance(name, str):
        if parse_address(name.strip("[]")) is not None:
            return name.strip("[]").lower()
        if NAME.fullmatch(name):
            wild, bare = name.startswith("*."), name.removeprefix("*.").lower().removesuffix(".")
            try:
                return "*." * wild + (URL.build(scheme="http", host=bare).raw_host or bare)
            except ValueError:
                pass
    raise ValueError(
        f"allowed_hosts: must be host names without scheme and port, such as 'chat.example.com' or '*.example.com', "
        f"not {name!r}."
    )
