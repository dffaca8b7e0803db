"""Redis commands with time limits and retries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiochatstream.errors import StoreUnavailable
from aiochatstream.extras import requires_extra

with requires_extra("redis"):
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import ExponentialWithJitterBackoff
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

Reply = TypeVar("Reply")

FAILURES = (RedisError, OSError, RuntimeError)
"""Errors of an unavailable Redis. TimeoutError is an OSError; uvloop raises RuntimeError on a closed connection."""

PREFIX = "aiochatstream:"

TTL = 30 * 86_400.0

REPLY_SECONDS = 3.0
"""Seconds until Redis must reply, including the retries of the client."""

RETRY_SECONDS = 3
"""Retry-After of refused requests, in seconds."""

RECONNECTS = 2
"""Retries of a command after its connection was closed, for example an idle one by Redis, a proxy or a firewall.

Every command of sessions and conversations is idempotent.
"""

MAX_COMMANDS = 32
"""Maximum number of concurrent commands; others wait. A client's connection pool refuses more than 100 by default."""


class RedisClient:
    """A Redis client whose commands return in time, or raise StoreUnavailable.

    :param contents: name of the stored data, for messages.
    """

    def __init__(self, redis: Redis, contents: str) -> None:
        self._redis, self._contents = redis, contents
        self._limit = asyncio.Semaphore(MAX_COMMANDS)
        closed = (RedisConnectionError, ConnectionError, RuntimeError)
        backoff = ExponentialWithJitterBackoff(cap=0.2, base=0.02)
        self._retry = Retry(backoff, RECONNECTS, supported_errors=closed)  # type: ignore[arg-type]  # accepts all
        self._lost = False

    def script(self, text: str) -> Callable[..., Awaitable[Any]]:
        """Return a coroutine function of key and arguments that runs a Lua script, with the errors of :meth:`run`."""
        script = self._redis.register_script(text)

        async def run(key: str, *arguments: str | int, seconds: float = REPLY_SECONDS) -> Any:
            return await self.run(lambda: script([key], arguments), seconds)

        return run

    async def run(self, command: Callable[[], Awaitable[Reply]], seconds: float = REPLY_SECONDS) -> Reply:
        """Return the reply to ``command``. Raise StoreUnavailable if it fails or takes too long."""
        try:
            async with asyncio.timeout(seconds), self._limit:
                reply = await self._retry.call_with_retry(command, _reconnect)
        except FAILURES as error:
            if not self._lost:
                logger.error("Redis is not available for %s: %s", self._contents, str(error) or type(error).__name__)
            self._lost = True
            raise StoreUnavailable(f"The store of {self._contents} is not available.", RETRY_SECONDS) from error
        if self._lost:
            logger.warning("Redis is available for %s again.", self._contents)
        self._lost = False
        return reply


async def _reconnect(error: Exception) -> None:
    """Do nothing: the client has closed the failed connection, and opens a new one for the next command."""


def ttl_milliseconds(ttl: float) -> int:
    """Return ``ttl`` seconds in milliseconds. Raise ValueError unless it is above 0."""
    if not ttl > 0:
        raise ValueError(f"ttl: must be above 0 seconds, not {ttl}.")
    return max(1, round(ttl * 1000))


def as_text(reply: Any) -> str:
    """Return a reply as text. Clients return bytes, or text with ``decode_responses``."""
    return reply.decode() if isinstance(reply, bytes) else str(reply)
