"""A pass phrase, typed into the chat like any message, grants a role to the session."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp import web

from aiochatstream.sessions.client_address import client_network
from aiochatstream.web.auth.access import is_agent
from aiochatstream.web.auth.pass_phrases import is_comparable
from aiochatstream.web.auth.rate_limit import TokenBuckets
from aiochatstream.web.auth.roles import Role
from aiochatstream.web.request_models import ChatRequest

if TYPE_CHECKING:
    from aiochatstream.chat_stream import ChatStream

logger = logging.getLogger(__name__)

ATTEMPTS, ATTEMPT_SECONDS = 30, 60.0
"""Attempts of one address at the roles' phrases in that time."""

TYPED = "Messages from %s are not compared with the roles' phrases for now: more than %d in %g seconds."
SENT = "Agents at %s are refused for now: more than %d wrong phrases in %g seconds."


def phrase_attempts(clock: Callable[[], float] = time.monotonic, *, warning: str = TYPED) -> TokenBuckets:
    """Return a bucket of attempts for each client address. ``warning`` is logged when one is empty."""

    def warn(address: str) -> None:
        logger.warning(warning, address, ATTEMPTS, ATTEMPT_SECONDS)

    return TokenBuckets(capacity=ATTEMPTS, seconds=ATTEMPT_SECONDS, on_empty=warn, clock=clock)


async def typed_role(server: ChatStream, request: web.Request, asked: ChatRequest) -> Role | None:
    """The role whose phrase the message is, if it is one."""
    text = asked.says or ""
    if is_agent(request) or not server.roles.can_be_granted or not is_comparable(text):
        return None
    if server.state != "ready":  # who sends again until it is must not use up the tries
        return None
    address = client_network(request)
    if not server.phrase_attempts.take(address):
        return None
    role = await asyncio.to_thread(server.roles.by_typed_phrase, text)
    if role is not None:
        logger.info("role %r granted to a session from %s", role.name, address)
    return role
