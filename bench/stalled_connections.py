"""Clients that hold on to a server without a word: uploads that stop, and readers that read nothing."""

from __future__ import annotations

import json
import socket
from collections import deque
from contextlib import suppress

from yarl import URL

UPLOAD_BYTES = 200_000
REQUESTS = 50
"""Responses that a reader asks for ahead, more than the sockets between take."""
MOST_CLIENTS = 20
"""Beyond these, who came first leaves."""


class StallingClients:
    """Open connections of such clients to the server at ``url``."""

    def __init__(self, url: str) -> None:
        address = URL(url)
        self._host, self._port = address.host or "", address.port or 80
        self._connections: deque[socket.socket] = deque()

    def upload(self) -> None:
        """Send all of a message but its last byte."""
        body = json.dumps({"user_input": "a" * UPLOAD_BYTES}).encode()
        self._send(
            b"POST /chat_stream", b"Content-Type: application/json\r\nContent-Length: %d" % (len(body) + 1), body
        )

    def ask(self) -> None:
        """Ask for many long responses, and read none."""
        self._send(b"GET /openapi.json", b"Accept: */*", b"", times=REQUESTS)

    def leave(self) -> None:
        """Close all connections."""
        while self._connections:
            self._connections.pop().close()

    def _send(self, what: bytes, header: bytes, body: bytes, times: int = 1) -> None:
        request = b"%b HTTP/1.1\r\nHost: %b\r\n%b\r\n\r\n%b" % (what, self._host.encode(), header, body)
        connection = socket.create_connection((self._host, self._port), timeout=1)
        connection.setblocking(False)
        self._connections.append(connection)
        with suppress(BlockingIOError, ConnectionError):  # it has taken what it takes
            connection.send(request * times)
        if len(self._connections) > MOST_CLIENTS:
            self._connections.popleft().close()
