"""Whole sessions in encrypted cookies."""

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
"""What a session may take in cookies: aiohttp reads 8,190 bytes of one header, with the host's other cookies."""

IN_TWO = "2."
"""Begins a value that goes on in the second cookie. No Fernet token has a dot, and a second cookie that is left from
before is not taken for a part."""


class CookieStorage(SessionStorage):
    """An aiohttp-session storage in the cookie itself: compressed, encrypted and signed, in one cookie or in two.

    Nobody but who has a key can read one or make one. A browser can send an older cookie of its own again.

    :param keys: one key, or several, the newest first: it encrypts, and all of them decrypt. Each is the text of
        ``cryptography.fernet.Fernet.generate_key()``, its 32 bytes, or a Fernet. (To change the key: put the new one
        first; take the old one out when its cookies may go.)
    :param max_age: seconds after which a cookie is no longer taken, since it was set last; None is never.
    :param max_bytes: what both cookies may take, with their names and attributes, 256 to 8,000. Conversations keep
        within it, beside what an app itself has in the session; where that alone is more, the log says so.

    The other parameters are those of :class:`SessionStorage`. Raises ValueError for what is no key.
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
            logger.debug("A session cookie is not one of ours, or its key is gone: a new session begins.")
            return await self.new_session()
        return Session(None, data=data, new=False, max_age=self.max_age)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        parts = [] if session.empty else self._parts(self._get_session_data(session), session.max_age)
        for name, part in zip((self.cookie_name, self._second_name), [*parts, "", ""], strict=False):
            if part or name in request.cookies:
                self.put_cookie(response, name, part, session.max_age)

    def _parts(self, data: object, max_age: int | None) -> list[str]:
        """The values of the cookies, one or two."""
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        sealed = self._fernet.encrypt(zlib.compress(text.encode(errors="surrogatepass"), 9)).decode()
        room = MAX_COOKIE_BYTES - self._bytes_without_value(max_age)
        if len(sealed) <= room:
            return [sealed]
        first = room - len(IN_TWO)
        return [IN_TWO + sealed[:first], sealed[first:]]

    def _bytes_without_value(self, max_age: int | None) -> int:
        probe = web.Response()
        self.put_cookie(probe, self._second_name, "x", max_age)
        return len(probe.cookies[self._second_name].OutputString()) - 1


def unseal(token: str, fernet: Fernet | MultiFernet, max_age: float | None) -> bytes:
    """Return what ``token`` seals.

    Raise InvalidToken if no key of ``fernet`` made it, or if it is older than ``max_age`` seconds. A time in the future
    is accepted, unlike with Fernet's own ``ttl``: the clocks of workers differ, and only a worker can have written it.
    """
    sealed = fernet.decrypt(token.encode())
    if max_age is not None and time.time() - fernet.extract_timestamp(token.encode()) > max_age:
        raise InvalidToken
    return sealed


def as_fernets(keys: Key | Sequence[Key]) -> list[Fernet]:
    """``keys`` as :class:`CookieStorage` takes them. Raises ValueError."""
    several = [keys] if isinstance(keys, str | bytes | Fernet) else list(keys)
    if not several:
        raise ValueError("keys: give one at least.")
    return [_as_fernet(key) for key in several]


def _as_fernet(key: Key) -> Fernet:
    if isinstance(key, Fernet):
        return key
    try:
        raw = isinstance(key, bytes) and len(key) == 32
        return Fernet(base64.urlsafe_b64encode(key) if raw and isinstance(key, bytes) else key)
    except (ValueError, TypeError, binascii.Error):
        raise ValueError("keys: each must be 32 bytes, as text of URL-safe base64 or as they are.") from None
