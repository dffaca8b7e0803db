"""Stalled connections: unfinished uploads, and clients that do not read their responses."""

from __future__ import annotations

import json
import socket
from collections import deque
from contextlib import suppress

from yarl import URL

UPLOAD_BYTES = 200_000
REQUESTS = 50
"""Pipelined requests of a client that does not read: more responses than the sockets can buffer."""
MAX_CONNECTIONS = 20
"""Maximum open connections. The oldest is closed first."""


class StalledConnections:
    """Stalled connections to the server at ``url``."""

    def __init__(self, url: str) -> None:
        address = URL(url)
        self._host, self._port = address.host or "", address.port or 80
        self._connections: deque[socket.socket] = deque()

    def upload(self) -> None:
        """Send a message without its last byte."""
        body = json.dumps({"user_input": "a" * UPLOAD_BYTES}).encode()
        self._send(
            b"POST /chat_stream", b"Content-Type: application/json\r\nContent-Length: %d" % (len(body) + 1), body
        )

    def request(self) -> None:
        """Send many requests with long responses, and read none."""
        self._send(b"GET /openapi.json", b"Accept: */*", b"", times=REQUESTS)

    def close(self) -> None:
        """Close all connections."""
        while self._connections:
            self._connections.pop().close()

    def _send(self, method_and_path: bytes, header: bytes, body: bytes, times: int = 1) -> None:
        request = b"%b HTTP/1.1\r\nHost: %b\r\n%b\r\n\r\n%b" % (method_and_path, self._host.encode(), header, body)
        connection = socket.create_connection((self._host, self._port), timeout=1)
        connection.setblocking(False)
        self._connections.append(connection)
        with suppress(BlockingIOError, ConnectionError):  # the buffers are full
            connection.send(request * times)
        if len(self._connections) > MAX_CONNECTIONS:
            self._connections.popleft().close()
