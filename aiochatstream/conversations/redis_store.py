"""Conversations in Redis, with one turn of each at a time among all processes.

Each Lua script uses one key, and is atomic.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.redis_client import PREFIX, TTL, RedisClient, as_text, ttl_milliseconds
from aiochatstream.conversations.store import ConversationStore, Holder, StopRequest
from aiochatstream.errors import ConversationBusy, ConversationChanged, StoreUnavailable

if TYPE_CHECKING:
    from redis.asyncio import Redis

logger = logging.getLogger(__name__)

SAVE_SECONDS = 10.0
"""Seconds to retry saving an answer: no other process has it."""

SAVE_RETRY_SECONDS = 0.25
"""Seconds between two attempts to save an answer."""

RELEASE_SECONDS = 1.0
"""Seconds that releasing a conversation may take; Redis also releases it after :data:`HOLD_MS`."""

HOLD_MS = 10_000
"""Milliseconds until the conversations of a killed process are released."""

FIRST_HOLD_MS = 1_000
"""Milliseconds of a hold until its first renewal: a Redis that was paused may still run commands that were given up."""

RENEWAL_SECONDS = 0.2
"""Seconds between two renewals of a hold, and between two checks for a stop request."""

GRACE_SECONDS = 2.0
"""Seconds to wait for a holder that may be ending."""

POLL_SECONDS = 0.05

LOAD = """
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return redis.call('HGET', KEYS[1], 'json')
"""

# saving the same conversation again succeeds: the reply to an earlier attempt may have been lost
SAVE = """
local number = redis.call('HGET', KEYS[1], 'number')
if number and number ~= ARGV[1] and redis.call('HGET', KEYS[1], 'json') ~= ARGV[3] then return number end
redis.call('HSET', KEYS[1], 'number', ARGV[2], 'json', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return false
"""

TAKE = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

RENEW = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return false end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('HGET', KEYS[1], 'stop') or ''
"""

STOP = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and redis.call('HGET', KEYS[1], 'stop') ~= 'discarded' then
    redis.call('HSET', KEYS[1], 'stop', ARGV[1])
end
return owner
"""

OWNER = "return redis.call('HGET', KEYS[1], 'owner')"

RELEASE = """
if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


class RedisConversationStore(ConversationStore):
    """Conversations in Redis, as JSON.

    :param redis: a client of redis-py.
    :param prefix: prefix of all keys, different for each application that shares the Redis.
    :param ttl: seconds to keep a conversation after its last use, above 0.

    Conversations survive a restart of Redis only if it is configured to persist them (``appendonly yes``).
    """

    def __init__(self, redis: Redis, *, prefix: str = PREFIX, ttl: float = TTL) -> None:
        client = RedisClient(redis, "conversations")
        self._load, self._save = client.script(LOAD), client.script(SAVE)
        self._take, self._renew, self._release = client.script(TAKE), client.script(RENEW), client.script(RELEASE)
        self._stop, self._owner = client.script(STOP), client.script(OWNER)
        self._prefix = prefix
        self._ttl = ttl_milliseconds(ttl)

    async def load(self, user_id: str, name: str) -> Conversation | None:
        text = await self._load(self._key("conversation", user_id, name), self._ttl)
        return None if text is None else Conversation.from_dict(json.loads(text))

    async def save(self, user_id: str, name: str, conversation: Conversation, *, expected_number: int) -> None:
        now = asyncio.get_running_loop().time
        deadline = now() + SAVE_SECONDS
        while True:
            try:
                return await self._put(user_id, name, conversation, expected_number)
            except StoreUnavailable:
                if now() >= deadline:
                    raise
            await asyncio.sleep(SAVE_RETRY_SECONDS)

    async def _put(self, user_id: str, name: str, conversation: Conversation, expected_number: int) -> None:
        text = json.dumps(conversation.to_dict(), ensure_ascii=False, separators=(",", ":"))
        key = self._key("conversation", user_id, name)
        stored_number = await self._save(key, expected_number, conversation.number, text, self._ttl)
        if stored_number is not None:
            raise ConversationChanged(f"The conversation is at turn {int(stored_number)}, not {expected_number}.")

    async def forget(self, user_id: str, name: str) -> bool:
        stored = await self.load(user_id, name)
        if stored is None:
            return False
        # the turn number continues: an answer that lost its hold must not restore the deleted turns
        await self._put(user_id, name, Conversation(number=stored.number + 1), stored.number)
        return bool(stored.turns)

    @asynccontextmanager
    async def hold(self, user_id: str, name: str, holder: Holder) -> AsyncIterator[None]:
        key = self._key("hold", user_id, name)
        try:
            if not await _in_time(lambda: self._take(key, holder.message_id, FIRST_HOLD_MS)):
                raise ConversationBusy(
                    "An answer of this conversation is running in another process. Wait for it or stop it."
                )
            released = asyncio.Event()
            renewal = asyncio.create_task(self._renew_until(released, key, holder), name=f"hold {holder.message_id}")
            try:
                yield
            finally:
                released.set()  # not cancel(), which a command of redis-py may lose
                await renewal
        finally:
            with suppress(StoreUnavailable):
                await self._release(key, holder.message_id, seconds=RELEASE_SECONDS)

    async def _renew_until(self, released: asyncio.Event, key: str, holder: Holder) -> None:
        """Renew the hold until it is released, and stop the holder on request."""
        while not await _set_within(RENEWAL_SECONDS, released):
            try:
                request = await self._renew(key, holder.message_id, HOLD_MS)
            except StoreUnavailable:
                continue
            if request is None:
                logger.warning(
                    "Answer %s lost its hold: another process may change the conversation.", holder.message_id
                )
                return
            match as_text(request):
                case "stopped" | "discarded" as reason:
                    holder.stop(reason)

    async def stop(self, user_id: str, name: str, reason: StopRequest) -> str | None:
        key = self._key("hold", user_id, name)
        owner = await self._stop(key, reason)
        if owner is None:
            return None

        async def ended() -> bool:
            return bool(await self._owner(key) != owner)

        await _in_time(ended)
        return as_text(owner)

    def _key(self, kind: str, user_id: str, name: str) -> str:
        return f"{self._prefix}{kind}:{name}:{user_id}"  # user ids may contain colons, names do not


async def _in_time(condition: Callable[[], Awaitable[bool]]) -> bool:
    """Wait until ``condition`` is true, at most :data:`GRACE_SECONDS`. Return its last value."""
    now = asyncio.get_running_loop().time
    deadline = now() + GRACE_SECONDS
    while not await condition():
        if now() >= deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


async def _set_within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for ``event``, at most ``seconds``. Return True if it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
