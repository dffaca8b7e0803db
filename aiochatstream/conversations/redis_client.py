"""The way to a Redis that may be killed, hang or refuse."""

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

Answer = TypeVar("Answer")

FAILURES = (RedisError, OSError, RuntimeError)
"""TimeoutError is an OSError. A RuntimeError is what uvloop raises where a connection has just been closed."""

PREFIX = "aiochatstream:"

TTL = 30 * 86_400.0

ANSWER_SECONDS = 3.0
"""How long Redis may take to answer, the client's own retries included."""

RETRY_SECONDS = 3
"""What a client is told to wait before it asks again."""

RECONNECTS = 2
"""Repetitions of a command whose connection is closed, as Redis, a proxy or a firewall does with idle ones.

Every command of the sessions and conversations may be repeated: a second run changes nothing.
"""

COMMANDS_AT_ONCE = 32
"""More wait here: a client's pool refuses connections beyond its limit, which is 100 unless set otherwise."""


class Link:
    """Asks a Redis, so that each answer comes in time or is StoreUnavailable.

    :param kept: what is kept there, for people.
    """

    def __init__(self, redis: Redis, kept: str) -> None:
        self._redis, self._kept = redis, kept
        self._places = asyncio.Semaphore(COMMANDS_AT_ONCE)
        closed = (RedisConnectionError, ConnectionError, RuntimeError)
        backoff = ExponentialWithJitterBackoff(cap=0.2, base=0.02)
        self._retry = Retry(backoff, RECONNECTS, supported_errors=closed)  # type: ignore[arg-type]  # any class goes
        self._lost = False

    def script(self, text: str) -> Callable[..., Awaitable[Any]]:
        """What runs ``text`` on a key, as ``await run(key, *arguments)``; raises as :meth:`ask`."""
        script = self._redis.register_script(text)

        async def run(key: str, *arguments: str | int, seconds: float = ANSWER_SECONDS) -> Any:
            return await self.ask(lambda: script([key], arguments), seconds)

        return run

    async def ask(self, command: Callable[[], Awaitable[Answer]], seconds: float = ANSWER_SECONDS) -> Answer:
        """What Redis answers to ``command``. Raises StoreUnavailable where that is an error, or not there in time."""
        try:
            async with asyncio.timeout(seconds), self._places:
                answer = await self._retry.call_with_retry(command, _reconnect)
        except FAILURES as error:
            if not self._lost:
                logger.error("Redis cannot be used for %s: %s", self._kept, str(error) or type(error).__name__)
            self._lost = True
            raise StoreUnavailable(f"The store of {self._kept} cannot be reached.", RETRY_SECONDS) from error
        if self._lost:
            logger.warning("Redis can be used for %s again.", self._kept)
        self._lost = False
        return answer


async def _reconnect(error: Exception) -> None:
    """Do nothing: the client has dropped the connection that failed, and makes a new one for the next command."""


def ttl_milliseconds(ttl: float) -> int:
    if not ttl > 0:
        raise ValueError(f"ttl: must be above 0 seconds, not {ttl}.")
    return max(1, round(ttl * 1000))


def as_text(answer: Any) -> str:
    """Clients give bytes, or text where they were made with ``decode_responses``."""
    return answer.decode() if isinstance(answer, bytes) else str(answer)
