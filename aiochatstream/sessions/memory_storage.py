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
"""Share that the session of a request is charged to, if not to its client's address (see :class:`BoundedMap`)."""

DAY = 86_400.0
MIB = 1 << 20


def recent_params() -> BoundedMap:
    """What a process remembers of the parameters that users have set, see :class:`UserSession`."""
    return BoundedMap(max_entries=10_000, idle_seconds=DAY, max_bytes=16 * MIB)


class MemoryStorage(SessionStorage):
    """An aiohttp-session storage in memory: the cookie carries nothing but a random 256-bit id.

    :param max_sessions: how many are kept; the least recently used goes first.
    :param idle_seconds: how long one is kept after its last use.
    :param max_bytes: how much all of them may take.

    The other parameters are those of :class:`SessionStorage`. An id that was not given out here is never taken over,
    and one that was given up is not revived by a request that began before.
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
        """In this block, the session is kept, however many others there are."""
        return self._sessions.pinned(identity)

    async def load_session(self, request: web.Request) -> Session:
        identity = self.load_cookie(request)
        kept = None if identity is None else self._sessions.get(identity)
        if kept is None:
            return await self.new_session()
        return Session(identity, data=self._decoder(kept), new=False, max_age=self.max_age)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        if session.empty:
            if session.identity is not None:
                self._sessions.pop(session.identity)
            self.save_cookie(response, "", max_age=session.max_age)
            return
        known: str | None = session.identity
        if known is not None and self._sessions.get(known) is None:  # given up meanwhile
            return  # who has the new cookie must not lose it
        identity = known or random_id()
        if known is None:
            session.set_new_identity(identity)
        share = request[SHARE] if SHARE in request else client_network(request)
        self._sessions.put(identity, self._encoder(self._get_session_data(session)), share)
        self.save_cookie(response, identity, max_age=session.max_age)
