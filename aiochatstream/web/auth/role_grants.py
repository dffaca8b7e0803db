"""Roles granted to sessions by pass phrases, which users type into the chat as a message."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from aiochatstream.sessions import is_agent
from aiochatstream.sessions.client_address import client_network
from aiochatstream.web.auth.pass_phrases import is_comparable
from aiochatstream.web.auth.roles import Role
from aiochatstream.web.request_models import ChatRequest
from aiochatstream.web.server import Server

logger = logging.getLogger(__name__)


async def typed_role(server: Server, request: web.Request, body: ChatRequest) -> Role | None:
    """Return the role whose pass phrase is the message in ``body``; None if it is not a phrase."""
    text = body.message or ""
    if is_agent(request) or not server.roles.can_be_granted or not is_comparable(text):
        return None
    if server.state != "ready":  # clients that retry until the server is ready must not use up their attempts
        return None
    address = client_network(request)
    if not server.phrase_attempts.take(address):
        return None
    role = await asyncio.to_thread(server.roles.by_typed_phrase, text)
    if role is not None:
        logger.info("role %r granted to a session from %s", role.name, address)
    return role
