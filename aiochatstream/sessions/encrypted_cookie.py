"""Sessions in encrypted cookies."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import time
import zlib
from collections.abc import Sequence

from aiohttp import web
from aiohttp_session import Session
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from aiochatstream.sessions.session_storage import MAX_COOKIE_BYTES, SessionStorage

logger = logging.getLogger(__name__)

Key = str | bytes | Fernet

MAX_BYTES = 6144
"""Default maximum bytes of a session's cookies. aiohttp limits the Cookie header, of all cookies, to 8,190 bytes."""

IN_TWO = "2."
"""Prefix of a value that continues in the second cookie. Fernet tokens contain no dot, so an obsolete second cookie is
never appended."""


class CookieStorage(SessionStorage):
    """Sessions of aiohttp-session in the cookie itself: compressed, encrypted and signed, in one or two cookies.

    Reading or creating a cookie requires a key. A browser can send one of its earlier cookies again.

    :param keys: a key, or a sequence of keys. The first one encrypts; all of them decrypt. Each key is the text of
        ``cryptography.fernet.Fernet.generate_key()``, its 32 bytes, or a Fernet. To rotate keys, insert the new one at
        the front, and remove the old one when its cookies may expire.
    :param max_age: seconds until a cookie expires after it was set; None for no limit.
    :param max_bytes: maximum bytes of both cookies, with names and attributes, 256 to 8,000. Oldest turns are dropped
        to stay within it. If the application's own data exceeds it, a warning is logged.

    :class:`SessionStorage` describes the other parameters. Raise ValueError for an invalid key.
    """

    def __init__(
        self,
        keys: Key | Sequence[Key],
        *,
        cookie_name: str | None = None,
        domain: str | None = None,
        max_age: int | None = None,
        path: str = "/",
        secure: bool = False,
        samesite: str = "Lax",
        max_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__(
            cookie_name=cookie_name, domain=domain, max_age=max_age, path=path, secure=secure, samesite=samesite
        )
        if not 256 <= max_bytes <= 8000:
            raise ValueError(f"max_bytes: must be from 256 to 8000, not {max_bytes}.")
        self.max_bytes = max_bytes
        self._fernet = MultiFernet(as_fernets(keys))
        self._second_name = f"{self.cookie_name}-2"

    async def load_session(self, request: web.Request) -> Session:
        sealed = self.load_cookie(request)
        if sealed is None:
            return await self.new_session()
        if sealed.startswith(IN_TWO):
            sealed = sealed.removeprefix(IN_TWO) + request.cookies.get(self._second_name, "")
        try:
            text = zlib.decompress(unseal(sealed, self._fernet, self.max_age))
            data = json.loads(text.decode(errors="surrogatepass"))
        except (InvalidToken, ValueError, zlib.error):
            logger.debug("Ignoring a session cookie that no key of this server can decrypt.")
            return await self.new_session()
        return Session(None, data=data, new=False, max_age=self.max_age)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        parts = [] if session.empty else self._parts(self._get_session_data(session), session.max_age)
        for name, part in zip((self.cookie_name, self._second_name), [*parts, "", ""], strict=False):
            if part or name in request.cookies:
                self.put_cookie(response, name, part, session.max_age)

    def _parts(self, data: object, max_age: int | None) -> list[str]:
        """Return the values of one or two cookies."""
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        sealed = self._fernet.encrypt(zlib.compress(text.encode(errors="surrogatepass"), 9)).decode()
        capacity = MAX_COOKIE_BYTES - self._bytes_without_value(max_age)
        if len(sealed) <= capacity:
            return [sealed]
        first = capacity - len(IN_TWO)
        return [IN_TWO + sealed[:first], sealed[first:]]

    def _bytes_without_value(self, max_age: int | None) -> int:
        probe = web.Response()
        self.put_cookie(probe, self._second_name, "x", max_age)
        return len(probe.cookies[self._second_name].OutputString()) - 1


def unseal(token: str, fernet: Fernet | MultiFernet, max_age: float | None) -> bytes:
    """Return the decrypted content of ``token``.

    Raise InvalidToken unless a key of ``fernet`` created it within the last ``max_age`` seconds. Times in the future
    are accepted, unlike with Fernet's ``ttl``: the clocks of workers differ, and only workers create tokens.
    """
    sealed = fernet.decrypt(token.encode())
    if max_age is not None and time.time() - fernet.extract_timestamp(token.encode()) > max_age:
        raise InvalidToken
    return sealed


def as_fernets(keys: Key | Sequence[Key]) -> list[Fernet]:
    """Return ``keys`` of :class:`CookieStorage` as Fernets. Raise ValueError for invalid ones."""
    sequence = [keys] if isinstance(keys, str | bytes | Fernet) else list(keys)
    if not sequence:
        raise ValueError("keys: must contain at least one key.")
    return [_as_fernet(key) for key in sequence]


def _as_fernet(key: Key) -> Fernet:
    if isinstance(key, Fernet):
        return key
    try:
        raw = isinstance(key, bytes) and len(key) == 32
        return Fernet(base64.urlsafe_b64encode(key) if raw and isinstance(key, bytes) else key)
    except (ValueError, TypeError, binascii.Error):
        raise ValueError("keys: each must be 32 bytes, as bytes or as URL-safe base64 text.") from None
