"""The address that ``aiochatstream serve`` listens on."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from aiochatstream.sessions.client_address import parse_address
from aiochatstream.texts import Texts

BACKLOG = 4096
"""Maximum number of connections that wait to be accepted: those of an application that connects all users at once.

The system may allow fewer.
"""


def listen(host: str, port: int, texts: Texts) -> socket.socket:
    """Return a listening socket. It is opened before the model loads, to detect an address in use. Raise OSError."""
    try:
        if ":" not in host:
            return socket.create_server((host, port), backlog=BACKLOG)
        dual_stack = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=dual_stack, backlog=BACKLOG)
    except OSError as error:
        raise OSError(texts.cannot_listen.format(host=host, port=port, reason=error.strerror)) from None


def listen_at(path: Path, texts: Texts) -> socket.socket:
    """Return a socket that listens at ``path``, which only its owner may open. Raise OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():  # of a process that was killed
            path.unlink()
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(texts.cannot_listen_at.format(path=path, reason=error.strerror)) from None
    return listener


def url_of(host: str, port: int) -> str:
    """Return the URL of a server that listens on ``host``, for clients on this machine."""
    all_addresses = host in ("", "0.0.0.0", "::")  # noqa: S104
    return f"http://{'127.0.0.1' if all_addresses else f'[{host}]' if ':' in host else host}:{port}"


def allowed_hosts(host: str, names: list[str] | None) -> list[str] | None:
    """Return the host names that clients may use: ``names``, and the name to listen on, which is in the printed URL."""
    if host in ("", "localhost") or parse_address(host) is not None:
        return names
    return [*(names or ()), host]
