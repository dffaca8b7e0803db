"""API keys: who may call OpenAI's API here."""

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
"""What a header can carry."""

SAFE_LENGTH = 20
"""Characters of a random key that no one finds by trying."""

logger = logging.getLogger(__name__)


class ApiKeys:
    """Compares what a client says with every key, in constant time. Only hashes are kept.

    :param keys: the keys, or a path to a file with a key a line (empty lines and those that begin with ``#`` do not
        count). None: there are none, and everyone may call.

    Raises ValueError for no key at all and for what cannot be one, which it does not repeat; OSError for a file that
    cannot be read.
    """

    def __init__(self, keys: Sequence[str] | os.PathLike[str] | None) -> None:
        where = "api_keys"
        if isinstance(keys, os.PathLike):
            where = os.fspath(keys)
            lines = map(str.strip, read_secrets(Path(keys)).splitlines())
            keys = [line for line in lines if line and not line.startswith("#")]
        if isinstance(keys, str) or not (keys is None or isinstance(keys, Sequence)):
            raise ValueError("api_keys: must be a list of strings, the path of a file, or None.")
        if keys is not None and not keys:
            raise ValueError(f"{where}: has no key. (Without API keys, everyone may call.)")
        for at, key in enumerate(keys or (), 1):
            if not isinstance(key, str) or not KEY.fullmatch(key):
                raise ValueError(f"{where}: key {at} must be 1 to 512 printable ASCII characters without spaces.")
            if len(key) < SAFE_LENGTH:
                logger.warning(
                    "%s: key %d has fewer than %d characters and could be guessed: attempts are not limited.",
                    where,
                    at,
                    SAFE_LENGTH,
                )
        self._hashes = None if keys is None else [_hash(key) for key in keys]
        self._connections: WeakKeyDictionary[BaseTransport, str] = WeakKeyDictionary()

    @property
    def needed(self) -> bool:
        """Whether who calls must say one."""
        return self._hashes is not None

    def __repr__(self) -> str:
        return f"<ApiKeys {'open' if self._hashes is None else len(self._hashes)}>"

    def check(self, request: web.Request) -> str:
        """Return the owner of the request's prompts: its key, or without keys its connection.

        Raises :class:`~aiochatstream.errors.InvalidKey` unless the request says one of the keys.
        """
        if self._hashes is None:
            return self._connection_of(request)
        scheme, _, said = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or not said.strip():
            raise InvalidKey("There is no API key: say it in the header 'Authorization: Bearer KEY'.")
        hashed = _hash(said.strip())
        if sum([hmac.compare_digest(hashed, key) for key in self._hashes]) == 0:  # all, whichever it is
            raise InvalidKey("The API key is none of this server's.")
        return f"key:{hashed.hex()}"

    def _connection_of(self, request: web.Request) -> str:
        """Return a random name of the request's connection, or of the request alone if that says less."""
        name = f"connection:{secrets.token_hex(16)}"
        transport = request.transport
        if transport is None or any(header in request.headers for header in PROXY_HEADERS):
            return name
        try:
            return self._connections.setdefault(transport, name)
        except TypeError:  # uvloop's transports over TLS cannot be referenced weakly
            return name


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
