"""Who may call what: the role of a request's client, and no requests that another site's page has sent."""

from __future__ import annotations

from aiohttp import web

from aiochatstream.errors import Forbidden, TooManyAttempts, Unauthorized
from aiochatstream.sessions import granted_role, is_agent
from aiochatstream.sessions.client_address import client_network
from aiochatstream.web.auth.origins import SAFE_METHODS, check_origin
from aiochatstream.web.auth.roles import ALWAYS_ALLOWED, PROBES, Role
from aiochatstream.web.server import Server

AUTH_HEADER = "X-ChatStream-Auth-Header"


async def check_access(server: Server, request: web.Request, api: str) -> Role:
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


async def _role(server: Server, request: web.Request) -> Role:
    roles = server.roles
    if is_agent(request):
        phrase = request.headers.get(AUTH_HEADER)
        role = roles.agent_default if phrase is None else _by_header_phrase(server, request, phrase)
        if role is None:
            raise Unauthorized("Denied on role layer.")
        return role
    if not roles.can_be_granted:
        return roles.browser_default
    return roles.granted(granted_role(await server.session(request), server.app_binding.namespace))


def _by_header_phrase(server: Server, request: web.Request, phrase: str) -> Role | None:
    """Return the role of ``phrase``; wrong ones use up the address's attempts. Without any left, none is compared."""
    address = client_network(request)
    if not server.header_attempts.allows(address):
        raise TooManyAttempts("Too many wrong phrases from this address. Send the right one a minute later.")
    role = server.roles.by_header_phrase(phrase)
    if role is None:
        server.header_attempts.take(address)
    return role


def check_site(server: Server, request: web.Request) -> None:
    """Reject requests by a host name that is not this server's, and those that another site's page sends to change
    something.

    Raises :class:`~aiochatstream.errors.Forbidden`.
    """
    server.allowed_hosts.check(request)
    if request.method not in SAFE_METHODS:
        check_origin(request, server.allowed_origins)
