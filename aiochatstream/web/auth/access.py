"""Who may call what: the role of a request's client, and no requests that another site's page has sent."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from yarl import URL

from aiochatstream.errors import Forbidden, TooManyAttempts, Unauthorized
from aiochatstream.sessions import granted_role
from aiochatstream.sessions.client_address import client_network
from aiochatstream.web.auth.roles import ALWAYS_ALLOWED, PROBES, Role

if TYPE_CHECKING:
    from aiochatstream.chat_stream import ChatStream

SKIP_HEADER = "X-FastSession-Skip"
AUTH_HEADER = "X-ChatStream-Auth-Header"

SAFE_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})


def is_agent(request: web.Request) -> bool:
    """Whether the client says that it has no session."""
    return request.headers.get(SKIP_HEADER) == "skip"


async def check_access(server: ChatStream, request: web.Request, api: str) -> Role:
    """The client's role, which may call ``api``. Reads no body and changes nothing.

    Raises :class:`~aiochatstream.errors.Unauthorized` for an agent without a role,
    :class:`~aiochatstream.errors.TooManyAttempts` for one that guesses its phrase, and
    :class:`~aiochatstream.errors.Forbidden` for a role that may not, and as :func:`check_site`.
    """
    if api not in PROBES:
        check_site(server, request)
    if api in ALWAYS_ALLOWED:
        return server.roles.browser_default
    role = await _role(server, request)
    if not role.may_call(api):
        raise Forbidden("Denied on role layer.")
    return role


async def _role(server: ChatStream, request: web.Request) -> Role:
    roles = server.roles
    if is_agent(request):
        phrase = request.headers.get(AUTH_HEADER)
        role = roles.agent_default if phrase is None else _by_header_phrase(server, request, phrase)
        if role is None:
            raise Unauthorized("Denied on role layer.")
        return role
    if not roles.can_be_granted:
        return roles.browser_default
    return roles.granted(granted_role(await server.session(request), server.place.namespace))


def _by_header_phrase(server: ChatStream, request: web.Request, phrase: str) -> Role | None:
    """Return the role of ``phrase``; wrong ones use up the address's attempts. Without any left, none is compared."""
    address = client_network(request)
    if not server.header_attempts.allows(address):
        raise TooManyAttempts("Too many wrong phrases from this address. Send the right one a minute later.")
    role = server.roles.by_header_phrase(phrase)
    if role is None:
        server.header_attempts.take(address)
    return role


def check_site(server: ChatStream, request: web.Request) -> None:
    """Reject requests by a host name that is not this server's, and those that another site's page sends to change
    something.

    Raises :class:`~aiochatstream.errors.Forbidden`.
    """
    server.allowed_hosts.check(request)
    if request.method not in SAFE_METHODS:
        check_origin(request, server.allowed_origins)


def check_origin(request: web.Request, allowed: Collection[str]) -> None:
    """Let pass what no page has sent, a page of this very host, or one of an ``allowed`` origin.

    Where the browser says itself how the page's site relates to this one (Sec-Fetch-Site), that decides: the Host
    header may be a proxy's. Raises :class:`~aiochatstream.errors.Forbidden`.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get(hdrs.ORIGIN)
    if origin in allowed:
        return
    if site in ("same-origin", "none"):
        return
    if site is None and (origin is None or _is_of_host(origin, request.headers.get(hdrs.HOST, ""))):
        return
    host = request.headers.get(hdrs.HOST, "")
    raise Forbidden(
        f"The page that sent this request is of an origin that this server does not allow ({(origin or site)!r}, for "
        f"the host {host!r}). Behind a proxy, pass the Host header on (nginx: proxy_set_header Host $http_host). For a "
        f"page of another origin, add that to ChatStream(allowed_origins=[...])."
    )


def _is_of_host(origin: str, host: str) -> bool:
    try:
        page = URL(origin)
        here = URL(f"{page.scheme}://{host}")
        return page.host is not None and (page.host, page.port) == (here.host, here.port)
    except ValueError:
        return False
