"""Sessions of aiohttp-session in Redis."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp_session import Session

from aiochatstream.conversations.random_ids import is_random_id, random_id
from aiochatstream.conversations.redis_client import PREFIX, TTL, RedisClient, Reply, as_text, ttl_milliseconds
from aiochatstream.errors import StoreUnavailable
from aiochatstream.sessions.session_storage import SessionStorage

if TYPE_CHECKING:
    from redis.asyncio import Redis


class RedisStorage(SessionStorage):
    """Sessions of aiohttp-session in Redis. The cookie contains only a random 256-bit id.

    :param redis: a client of redis-py.
    :param prefix: prefix of all keys, different for each application that shares the Redis.
    :param ttl: seconds to keep a session after its last use, above 0.

    :class:`SessionStorage` describes the other parameters. Unknown ids are never adopted, and a request that began
    earlier cannot restore a deleted session. If Redis is not available, loading and saving raise
    ``web.HTTPServiceUnavailable``, also in the application's own routes.
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
        self._client = RedisClient(redis, "sessions")
        self._redis = redis
        self._prefix = prefix
        self._ttl = ttl_milliseconds(ttl)

    async def load_session(self, request: web.Request) -> Session:
        identity = self.load_cookie(request)
        if not is_random_id(identity):
            return await self.new_session()
        text = await self._run(lambda: self._redis.getex(self._key(identity), px=self._ttl))
        if text is None:
            return await self.new_session()
        return Session(identity, data=self._decoder(as_text(text)), new=False, max_age=self.max_age)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        known: str | None = session.identity
        if session.empty:
            if known is not None:
                await self._run(lambda: self._redis.delete(self._key(known)))
            self.save_cookie(response, "", max_age=session.max_age)
            return
        identity = known or random_id()
        text = self._encoder(self._get_session_data(session))
        stored = await self._run(lambda: self._redis.set(self._key(identity), text, px=self._ttl, xx=known is not None))
        if not stored:  # deleted by a concurrent request; the client keeps its newer cookie
            return
        if known is None:
            session.set_new_identity(identity)
        self.save_cookie(response, identity, max_age=session.max_age)

    def _key(self, identity: str) -> str:
        return f"{self._prefix}session:{identity}"

    async def _run(self, command: Callable[[], Awaitable[Reply]]) -> Reply:
        """Run ``command``. Raise an HTTP error, because aiohttp-session saves after the handler."""
        try:
            return await self._client.run(command)
        except StoreUnavailable as error:
            body = {"error": error.code, "detail": error.detail, "success": False, "message": error.detail}
            raise web.HTTPServiceUnavailable(
                text=json.dumps(body),
                content_type="application/json",
                headers={
                    "Retry-After": str(error.retry_after),
                    "Cache-Control": "no-store",
                    "X-Content-Type-Options": "nosniff",
                },
            ) from error
