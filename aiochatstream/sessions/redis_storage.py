"""The sessions of aiohttp-session in Redis."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp_session import Session

from aiochatstream.conversations.random_ids import is_random_id, random_id
from aiochatstream.conversations.redis_client import PREFIX, TTL, Answer, Link, as_text, ttl_milliseconds
from aiochatstream.errors import StoreUnavailable
from aiochatstream.sessions.session_storage import SessionStorage

if TYPE_CHECKING:
    from redis.asyncio import Redis


class RedisStorage(SessionStorage):
    """An aiohttp-session storage in Redis: the cookie carries nothing but a random 256-bit id.

    :param redis: a client of redis-py.
    :param prefix: what all keys begin with. Apps that share a Redis have different ones.
    :param ttl: seconds that a session is kept after its last use, above 0.

    The other parameters are those of :class:`SessionStorage`. An id that was not given out here is never taken over,
    and one that was given up is not revived by a request that began before. Where Redis cannot be reached, loading and
    saving raise ``web.HTTPServiceUnavailable``, also in the app's own routes.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        prefix: str = PREFIX,
        ttl: float = TTL,
        cookie_name: str | None = None,
        domain: str | None = None,
        max_age: int | None = None,
        path: str = "/",
        secure: bool = False,
        samesite: str = "Lax",
    ) -> None:
        super().__init__(
            cookie_name=cookie_name, domain=domain, max_age=max_age, path=path, secure=secure, samesite=samesite
        )
        self._link = Link(redis, "sessions")
        self._redis = redis
        self._prefix = prefix
        self._ttl = ttl_milliseconds(ttl)

    async def load_session(self, request: web.Request) -> Session:
        identity = self.load_cookie(request)
        if not is_random_id(identity):
            return await self.new_session()
        kept = await self._ask(lambda: self._redis.getex(self._key(identity), px=self._ttl))
        if kept is None:
            return await self.new_session()
        return Session(identity, data=self._decoder(as_text(kept)), new=False, max_age=self.max_age)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        known: str | None = session.identity
        if session.empty:
            if known is not None:
                await self._ask(lambda: self._redis.delete(self._key(known)))
            self.save_cookie(response, "", max_age=session.max_age)
            return
        identity = known or random_id()
        text = self._encoder(self._get_session_data(session))
        kept = await self._ask(lambda: self._redis.set(self._key(identity), text, px=self._ttl, xx=known is not None))
        if not kept:  # given up meanwhile; who has the new cookie must not lose it
            return
        if known is None:
            session.set_new_identity(identity)
        self.save_cookie(response, identity, max_age=session.max_age)

    def _key(self, identity: str) -> str:
        return f"{self._prefix}session:{identity}"

    async def _ask(self, command: Callable[[], Awaitable[Answer]]) -> Answer:
        """An error of HTTP itself: aiohttp-session saves after the handler, and the app's own routes have sessions."""
        try:
            return await self._link.ask(command)
        except StoreUnavailable as error:
            told = {"error": error.code, "detail": error.detail, "success": False, "message": error.detail}
            raise web.HTTPServiceUnavailable(
                text=json.dumps(told),
                content_type="application/json",
                headers={
                    "Retry-After": str(error.retry_after),
                    "Cache-Control": "no-store",
                    "X-Content-Type-Options": "nosniff",
                },
            ) from error
