"""Sessions in the memory of this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from aiohttp import web
from aiohttp_session import Session

from aiochatstream.conversations.lru import BoundedMap
from aiochatstream.conversations.random_ids import random_id
from aiochatstream.sessions.client_address import client_network
from aiochatstream.sessions.session_storage import SessionStorage

SHARE = web.RequestKey("aiochatstream_share", str)
"""Share to which the session of a request is charged; default: its client's address (see :class:`BoundedMap`)."""

DAY = 86_400.0
MIB = 1 << 20


def recent_params() -> BoundedMap:
    """Return a cache of users' parameters for one process, see :class:`UserSession`."""
    return BoundedMap(max_entries=10_000, idle_seconds=DAY, max_bytes=16 * MIB)


class MemoryStorage(SessionStorage):
    """Sessions of aiohttp-session in memory. The cookie contains only a random 256-bit id.

    :param max_sessions: maximum number of sessions; the least recently used is dropped first.
    :param idle_seconds: seconds to keep a session after its last use, above 0.
    :param max_bytes: maximum bytes of all sessions as JSON.

    :class:`SessionStorage` describes the other parameters. Unknown ids are never adopted, and a request that began
    earlier cannot restore a deleted session.
    """

    def __init__(
        self,
        *,
        max_sessions: int = 10_000,
        idle_seconds: float = DAY,
        max_bytes: int = 64 * MIB,
        cookie_name: str | None = None,
        domain: str | None = None,
        max_age: int | None = None,
        path: str = "/",
        secure: bool = False,
        samesite: str = "Lax",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            cookie_name=cookie_name, domain=domain, max_age=max_age, path=path, secure=secure, samesite=samesite
        )
        self._sessions = BoundedMap(
            max_entries=max_sessions, idle_seconds=idle_seconds, max_bytes=max_bytes, clock=clock
        )

    def __len__(self) -> int:
        return len(self._sessions)

    def pinned(self, identity: str) -> AbstractContextManager[None]:
        """Protect the session from being dropped in this block."""
        return self._sessions.pinned(identity)

    async def load_session(self, request: web.Request) -> Session:
        identity = self.load_cookie(request)
        text = None if identity is None else self._sessions.get(identity)
        if text is None:
            return await self.new_session()
        return Session(identity, data=self._decoder(text), new=False, max_age=self.max_age)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        if session.empty:
            if session.identity is not None:
                self._sessions.pop(session.identity)
            self.save_cookie(response, "", max_age=session.max_age)
            return
        known: str | None = session.identity
        if known is not None and self._sessions.get(known) is None:  # deleted by a concurrent request
            return  # the client keeps its newer cookie
        identity = known or random_id()
        if known is None:
            session.set_new_identity(identity)
        share = request[SHARE] if SHARE in request else client_network(request)
        self._sessions.put(identity, self._encoder(self._get_session_data(session)), share)
        self.save_cookie(response, identity, max_age=session.max_age)
