"""Base class of session storages: their cookies."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp_session import AbstractStorage

COOKIE_NAME = "AIOHTTP_SESSION"

MAX_COOKIE_BYTES = 4096
"""Maximum bytes of name, value and attributes of a cookie in all browsers."""


class SessionStorage(AbstractStorage):
    """A storage of aiohttp-session with an HttpOnly cookie, bound to its host by the prefix ``__Host-`` if possible:
    with ``secure``, without ``domain`` and with the path ``/``.

    :param cookie_name: name of the cookie; None for ``AIOHTTP_SESSION``, with the prefix if possible.
    :param domain: domain whose hosts receive the cookie; None for this host only.
    :param max_age: seconds that browsers keep the cookie; None until they are closed.
    :param path: path below which browsers send the cookie.
    :param secure: restrict the cookie to HTTPS. Set it on every HTTPS server.
    :param samesite: ``Lax``, ``Strict``, or the text ``None`` for pages of other sites, which requires ``secure``.
    """

    def __init__(
        self,
        *,
        cookie_name: str | None = None,
        domain: str | None = None,
        max_age: int | None = None,
        path: str = "/",
        secure: bool = False,
        samesite: str = "Lax",
    ) -> None:
        host_only = secure and domain is None and path == "/"
        super().__init__(
            cookie_name=cookie_name or f"{'__Host-' if host_only else ''}{COOKIE_NAME}",
            domain=domain,
            max_age=max_age,
            path=path,
            secure=secure,
            samesite=samesite,
        )

    def save_cookie(self, response: web.StreamResponse, cookie_data: str, *, max_age: int | None = None) -> None:
        self.put_cookie(response, self.cookie_name, cookie_data, max_age)

    def put_cookie(self, response: web.StreamResponse, name: str, value: str, max_age: int | None) -> None:
        """Set the cookie ``name`` to ``value``, or delete it if ``value`` is empty."""
        cookie = self.cookie_params
        attributes: dict[str, Any] = {
            key: attribute for key, attribute in cookie.items() if key not in ("max_age", "expires")
        }
        if value:
            response.set_cookie(name, value, max_age=cookie["max_age"] if max_age is None else max_age, **attributes)
        else:
            response.del_cookie(name, **attributes)
