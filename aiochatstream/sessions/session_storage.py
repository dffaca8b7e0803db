"""What the session storages here have in common: their cookies."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp_session import AbstractStorage

COOKIE_NAME = "AIOHTTP_SESSION"

MAX_COOKIE_BYTES = 4096
"""What every browser keeps of one cookie: name, value and attributes."""


class SessionStorage(AbstractStorage):
    """An aiohttp-session storage whose cookie is HttpOnly, SameSite=Lax unless ``samesite`` says otherwise, and bound
    to this very host (by the prefix ``__Host-``) where that is possible: with ``secure``, and without ``domain``.

    :param cookie_name: None is ``AIOHTTP_SESSION``, with the prefix where it is possible.
    :param domain: hosts that get the cookie, too; None is this one only.
    :param max_age: seconds that the browser keeps the cookie; None is until it is closed.
    :param secure: send the cookie over HTTPS only. Turn it on wherever there is HTTPS.
    :param samesite: ``Lax``, ``Strict``, or ``None`` (the text) for pages of other sites, which takes ``secure``.
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
        """Have the browser keep ``value`` under ``name``, or forget what it has there if that is empty."""
        cookie = self.cookie_params
        attributes: dict[str, Any] = {name: of for name, of in cookie.items() if name not in ("max_age", "expires")}
        if value:
            response.set_cookie(name, value, max_age=cookie["max_age"] if max_age is None else max_age, **attributes)
        else:
            response.del_cookie(name, **attributes)
