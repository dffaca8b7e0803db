"""Access checks of a request: the role of its client, its host name, and its origin."""

from __future__ import annotations

from aiohttp import web

from aiochatstream.errors import Forbidden, TooManyAttempts, Unauthorized
from aiochatstream.sessions import granted_role, is_agent
from aiochatstream.sessions.client_address import client_network
from aiochatstream.web.auth.origins import SAFE_METHODS, check_origin
from aiochatstream.web.auth.roles import ALWAYS_ALLOWED, PROBES, Role
from aiochatstream.web.server import Server

AUTH_HEADER = "X-ChatStream-Auth-Header"


async def check_access(server: Server, request: web.Request, endpoint: str) -> Role:
    """Check that the client may call ``endpoint``, and return the client's role. Reads no body and changes nothing.

    Raises :class:`~aiochatstream.errors.Unauthorized` for an agent without a role,
    :class:`~aiochatstream.errors.TooManyAttempts` for an agent that guesses phrases,
    :class:`~aiochatstream.errors.Forbidden` for a role that may not call ``endpoint``, and as
    :func:`check_host_and_origin`.
    """
    if endpoint not in PROBES:
        check_host_and_origin(server, request)
    if endpoint in ALWAYS_ALLOWED:
        return server.roles.browser_default
    role = await _role(server, request)
    if not role.may_call(endpoint):
        raise Forbidden("Denied on role layer.")
    return role


async def _role(server: Server, request: web.Request) -> Role:
    roles = server.roles
    if is_agent(request):
        phrase = request.headers.get(AUTH_HEADER)
        role = roles.agent_default if phrase is None else _header_phrase_role(server, request, phrase)
        if role is None:
            raise Unauthorized("Denied on role layer.")
        return role
    if not roles.can_be_granted:
        return roles.browser_default
    return roles.by_granted_name(granted_role(await server.session(request), server.app_binding.namespace))


def _header_phrase_role(server: Server, request: web.Request, phrase: str) -> Role | None:
    """Return the role of ``phrase``. A wrong phrase takes one of the address's attempts.

    Raises TooManyAttempts, without comparing the phrase, if no attempts are left.
    """
    address = client_network(request)
    if not server.header_attempts.allows(address):
        raise TooManyAttempts("Too many wrong phrases from this address. Try again in a minute.")
    role = server.roles.by_header_phrase(phrase)
    if role is None:
        server.header_attempts.take(address)
    return role


def check_host_and_origin(server: Server, request: web.Request) -> None:
    """Reject requests with a foreign host name, and unsafe methods of pages of other sites.

    Raises :class:`~aiochatstream.errors.Forbidden`.
    """
    server.allowed_hosts.check(request)
    if request.method not in SAFE_METHODS:
        check_origin(request, server.allowed_origins)
