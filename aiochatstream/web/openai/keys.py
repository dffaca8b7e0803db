"""API keys of clients of OpenAI's API."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from asyncio import BaseTransport
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from aiohttp import hdrs, web

from aiochatstream.errors import InvalidKey
from aiochatstream.web.auth.addresses import PROXY_HEADERS
from aiochatstream.web.auth.secret_files import read_secrets

KEY = re.compile(r"[!-~]{1,512}")
"""Keys that can be sent in a header."""

SAFE_LENGTH = 20
"""Minimum number of characters of a random key that cannot be guessed."""

CONNECTION = "connection:"
"""Beginning of the names of owners without a key."""

logger = logging.getLogger(__name__)


class ApiKeys:
    """The keys that grant access, compared in constant time. Only their hashes are stored.

    :param keys: the keys, or the path of a file with one key per line (empty lines and lines that begin with ``#`` are
        ignored). None: no key is required.

    Raises ValueError for an empty list and for invalid keys, which the message does not contain, and OSError if the
    file cannot be read.
    """

    def __init__(self, keys: Sequence[str] | os.PathLike[str] | None) -> None:
        source = "api_keys"
        if isinstance(keys, os.PathLike):
            source = os.fspath(keys)
            lines = map(str.strip, read_secrets(Path(keys)).splitlines())
            keys = [line for line in lines if line and not line.startswith("#")]
        if isinstance(keys, str) or not (keys is None or isinstance(keys, Sequence)):
            raise ValueError("api_keys: must be a list of strings, the path of a file, or None.")
        if keys is not None and not keys:
            raise ValueError(f"{source}: must contain at least one key.")
        for number, key in enumerate(keys or (), 1):
            if not isinstance(key, str) or not KEY.fullmatch(key):
                raise ValueError(f"{source}: key {number} must be 1 to 512 printable ASCII characters without spaces.")
            if len(key) < SAFE_LENGTH:
                logger.warning(
                    "%s: key %d has fewer than %d characters; attempts to guess it are not rate limited.",
                    source,
                    number,
                    SAFE_LENGTH,
                )
        self._hashes = None if keys is None else [_hash(key) for key in keys]
        self._connections: WeakKeyDictionary[BaseTransport, str] = WeakKeyDictionary()

    @property
    def required(self) -> bool:
        """True if requests must contain a key."""
        return self._hashes is not None

    def __repr__(self) -> str:
        return f"<ApiKeys {'open' if self._hashes is None else len(self._hashes)}>"

    def check(self, request: web.Request) -> str:
        """Return the owner of the request's prompts: a name of its key or, if no key is required, of its connection.

        Raise :class:`~aiochatstream.errors.InvalidKey` if the key is missing or invalid.
        """
        if self._hashes is None:
            return self._connection_owner(request)
        scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise InvalidKey("Missing API key. Send it in the header 'Authorization: Bearer KEY'.")
        digest = _hash(key.strip())
        if sum([hmac.compare_digest(digest, valid) for valid in self._hashes]) == 0:  # compare all: constant time
            raise InvalidKey("Invalid API key.")
        return f"key:{digest.hex()}"

    def _connection_owner(self, request: web.Request) -> str:
        """Return a random name of the connection, or of the request if others may share its connection."""
        name = f"{CONNECTION}{secrets.token_hex(16)}"
        transport = request.transport
        if transport is None or any(header in request.headers for header in PROXY_HEADERS):
            return name
        try:
            return self._connections.setdefault(transport, name)
        except TypeError:  # uvloop's transports over TLS cannot be referenced weakly
            return name


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
