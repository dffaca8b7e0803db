"""Conversations in Redis, and one turn of each at a time among all processes.

Each script touches one key, and is done whole or not at all.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.redis_client import PREFIX, TTL, Link, as_text, ttl_milliseconds
from aiochatstream.conversations.store import ConversationStore, Holder, StopRequest
from aiochatstream.errors import ConversationBusy, ConversationChanged, StoreUnavailable

if TYPE_CHECKING:
    from redis.asyncio import Redis

logger = logging.getLogger(__name__)

SAVE_SECONDS = 10.0
"""How long it is tried to keep an answer: nobody has it but this process."""

AGAIN_SECONDS = 0.25
"""How long after a try that failed the next one begins."""

RELEASE_SECONDS = 1.0
"""How long it may take to give a conversation free, which Redis does by itself if need be."""

HOLD_MS = 10_000
"""How long the conversations of a process that was killed stay held, in milliseconds."""

FIRST_HOLD_MS = 1_000
"""The same until the first renewal: a Redis that stood still goes on with requests that were given up meanwhile."""

LOOK_SECONDS = 0.2
"""How often a holder renews its hold, and sees that it is to stop."""

GRACE_SECONDS = 2.0
"""How long one waits for a holder that may be ending."""

POLL_SECONDS = 0.05

LOAD = """
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return redis.call('HGET', KEYS[1], 'json')
"""

# the same again is no change: the reply to an earlier try may have been lost
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
    :param prefix: what all keys begin with. Apps that share a Redis have different ones.
    :param ttl: seconds that a conversation is kept after its last use, above 0.

    Whether conversations outlive Redis itself is a matter of its configuration (``appendonly yes``).
    """

    def __init__(self, redis: Redis, *, prefix: str = PREFIX, ttl: float = TTL) -> None:
        link = Link(redis, "conversations")
        self._load, self._save = link.script(LOAD), link.script(SAVE)
        self._take, self._renew, self._release = link.script(TAKE), link.script(RENEW), link.script(RELEASE)
        self._stop, self._owner = link.script(STOP), link.script(OWNER)
        self._prefix = prefix
        self._ttl = ttl_milliseconds(ttl)

    async def load(self, user_id: str, name: str) -> Conversation | None:
        kept = await self._load(self._key("conversation", user_id, name), self._ttl)
        return None if kept is None else Conversation.from_dict(json.loads(kept))

    async def save(self, user_id: str, name: str, conversation: Conversation, *, expected_number: int) -> None:
        now = asyncio.get_running_loop().time
        deadline = now() + SAVE_SECONDS
        while True:
            try:
                return await self._put(user_id, name, conversation, expected_number)
            except StoreUnavailable:
                if now() >= deadline:
                    raise
            await asyncio.sleep(AGAIN_SECONDS)

    async def _put(self, user_id: str, name: str, conversation: Conversation, expected_number: int) -> None:
        text = json.dumps(conversation.to_dict(), ensure_ascii=False, separators=(",", ":"))
        key = self._key("conversation", user_id, name)
        kept = await self._save(key, expected_number, conversation.number, text, self._ttl)
        if kept is not None:
            raise ConversationChanged(f"The conversation is at turn {int(kept)}, not {expected_number}.")

    async def forget(self, user_id: str, name: str) -> bool:
        kept = await self.load(user_id, name)
        if kept is None:
            return False
        # the number stays, and goes on: an answer whose hold was lost must not bring back what was said
        await self._put(user_id, name, Conversation(number=kept.number + 1), kept.number)
        return bool(kept.turns)

    @asynccontextmanager
    async def hold(self, user_id: str, name: str, holder: Holder) -> AsyncIterator[None]:
        key = self._key("hold", user_id, name)
        try:
            if not await _in_time(lambda: self._take(key, holder.message_id, FIRST_HOLD_MS)):
                raise ConversationBusy(
                    "An answer of this conversation is running in another process. Wait for it or stop it."
                )
            over = asyncio.Event()
            keeping = asyncio.create_task(self._keep(key, holder, over), name=f"hold {holder.message_id}")
            try:
                yield
            finally:
                over.set()  # no cancel(): a command of redis-py may lose that
                await keeping
        finally:
            with suppress(StoreUnavailable):
                await self._release(key, holder.message_id, seconds=RELEASE_SECONDS)

    async def _keep(self, key: str, holder: Holder, over: asyncio.Event) -> None:
        """Renew the hold, and look whether its holder is to stop."""
        while not await _set_within(LOOK_SECONDS, over):
            try:
                asked = await self._renew(key, holder.message_id, HOLD_MS)
            except StoreUnavailable:
                continue
            if asked is None:
                logger.warning(
                    "Answer %s lost its hold: another process may change the conversation.", holder.message_id
                )
                return
            match as_text(asked):
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
        return f"{self._prefix}{kind}:{name}:{user_id}"  # a name has no colon, a user's id may have


async def _in_time(condition: Callable[[], Awaitable[bool]]) -> bool:
    """Look at ``condition`` until it is true, at most 2 s; tell whether it is."""
    now = asyncio.get_running_loop().time
    deadline = now() + GRACE_SECONDS
    while not await condition():
        if now() >= deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


async def _set_within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for ``event``, at most so long; tell whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
