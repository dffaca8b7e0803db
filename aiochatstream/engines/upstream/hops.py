"""Protection against loops of servers that are each other's upstream.

Each server that forwards a request adds its own random id to the header :data:`HEADER`. A request that already has the
id of the server that receives it, or :data:`MAX_HOPS` ids, is refused before it takes a slot.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

from aiochatstream.errors import LoopDetected

HEADER = "X-Aiochatstream-Hops"
"""Header with the ids of the servers that have forwarded a request, separated by commas."""

MAX_HOPS = 3
"""Maximum number of servers that forward a request, one after another."""

SERVER_ID = re.compile(r"[0-9a-f]{16}")

_passed: ContextVar[tuple[str, ...]] = ContextVar("passed", default=())
"""Ids of the servers that have forwarded the request that is being answered. Tasks inherit it from the request's
handler, so that it is also known to a turn, which has a task of its own."""


def new_server_id() -> str:
    """Return a random id for :data:`HEADER`."""
    return secrets.token_hex(8)


def receive(header: str | None, own_id: str | None) -> None:
    """Store the hops of a request that arrives, for :func:`outgoing` in the same task and the tasks that it creates.

    Call it for every request: requests of one connection share a task.

    :param header: value of :data:`HEADER`; None if the request has none. Anything else than ids is ignored.
    :param own_id: id of the server; None if it forwards no requests, so that it cannot be part of a loop.

    Raise :class:`~aiochatstream.errors.LoopDetected` if the request has passed this server before, or
    :data:`MAX_HOPS` servers.
    """
    passed = tuple(SERVER_ID.findall(header or ""))
    _passed.set(passed)
    if own_id is None:
        return
    if own_id in passed:
        raise LoopDetected("This request has passed this server before: the servers are each other's upstream.")
    if len(passed) >= MAX_HOPS:
        raise LoopDetected(f"This request has passed {len(passed)} servers; at most {MAX_HOPS} may forward a request.")


def outgoing(own_id: str) -> str:
    """Return the value of :data:`HEADER` for a request that this server sends to an upstream."""
    return ", ".join((*_passed.get(), own_id))
