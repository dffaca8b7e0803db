"""One queue for several servers, in Redis: the script that all of them call, and its messages.

The servers are called fronts. A front calls regularly, and each call has a number, so that a call that Redis runs twice
or too late changes nothing: then the front reports everything again. Calls of a queue run one after the other.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from aiochatstream.conversations.redis_client import PREFIX, RedisClient

if TYPE_CHECKING:
    from redis.asyncio import Redis

LEASE_SECONDS = 3.0
"""Seconds after its last call until a front loses its slots and places."""

KEY_SECONDS = 60
"""Seconds until Redis deletes the keys of a queue that no front uses."""

CALL_SECONDS = 1.0
"""Seconds until Redis must reply: a front notices a failure before its lease ends."""

FULL, LARGE = 0, -1
"""Numbers of places that mean a refusal: no place is free; none is available to requests for many answers."""

SCRIPT = """
local id, call = ARGV[1], cjson.decode(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function withdraw(ids)
    for _, ticket in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
        if ids[string.match(ticket, '^%x+')] then redis.call('ZREM', KEYS[2], ticket) end
    end
end

local fronts, expired = {}, {}
local stored = redis.call('HGETALL', KEYS[1])
for i = 1, #stored, 2 do
    local front = cjson.decode(stored[i + 1])
    if front.lease < now then
        expired[stored[i]] = true
        redis.call('HDEL', KEYS[1], stored[i])
    else
        fronts[stored[i]] = front
    end
end
if next(expired) then withdraw(expired) end

local front = fronts[id]
if call.leaving then
    withdraw({[id] = true})
    redis.call('HDEL', KEYS[1], id)
    return false
elseif call.whole then
    if front and call.number < front.number then return false end
    -- the first front after a failure of Redis: what the others run is not known before their next calls
    if not next(fronts) and call.fronts > 1 then
        redis.call('SET', KEYS[3], call.fronts, 'PX', call.lease)
    end
    withdraw({[id] = true})
    front = {running = call.running}
    for _, place in ipairs(call.waiting) do
        redis.call('ZADD', KEYS[2], string.format('%.0f', place[2]), id .. ':' .. place[1])
    end
elseif not front or call.number ~= front.number + 1 then
    return false
else
    front.running = front.running - call.freed
    for _, number in ipairs(call.left) do
        -- a ticket without a place was granted a slot by the call before, after it had left
        if redis.call('ZREM', KEYS[2], id .. ':' .. number) == 0 then front.running = front.running - 1 end
    end
end
front.number, front.lease = call.number, now + call.lease
front.slots, front.large, front.load = call.slots, call.large, call.load
fronts[id] = front

local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local score = math.max(time[1] * 1000000 + time[2], (last[2] or 0) + 1)
local enqueued = {}
local function enqueue(number)
    redis.call('ZADD', KEYS[2], string.format('%.0f', score), id .. ':' .. number)
    enqueued[#enqueued + 1] = {number, score}
    score = score + 1
end

local count, slots, running, large, load = 0, 0, 0, 0, {}
for other, state in pairs(fronts) do
    count, running, large = count + 1, running + state.running, large + state.large
    if state.slots > 0 and (slots == 0 or state.slots < slots) then slots = state.slots end
    if other ~= id then
        for name, answers in pairs(state.load) do load[name] = (load[name] or 0) + answers end
    end
end

for _, number in ipairs(call.followers) do enqueue(number) end
local waiting = redis.call('ZCARD', KEYS[2])
local places = {}
for i, request in ipairs(call.requests) do
    local number, answers = request[1], request[2]
    local free = math.max(0, slots - running) + call.queue_size - waiting
    places[i] = math.max(0, math.min(answers, math.max(1, slots), free))
    if places[i] > 0 and places[i] < answers then
        places[i] = math.min(places[i], slots + math.floor(call.queue_size / 2) - large)
        if places[i] <= 0 then places[i] = -1 end
        large = large + math.max(0, places[i])
        front.large = front.large + math.max(0, places[i])
    end
    for ticket = number, number + places[i] - 1 do enqueue(ticket) end
    waiting = waiting + math.max(0, places[i])
end

-- each of the first tickets has a claim on a free slot, which its own front fetches
local free = slots - running
local most = free
local known_fronts = redis.call('GET', KEYS[3])
if known_fronts then
    most = math.max(1, math.floor(slots / known_fronts)) - front.running
end
local granted = {}
for _, ticket in ipairs(free > 0 and front.slots > 0 and redis.call('ZRANGE', KEYS[2], 0, free - 1) or {}) do
    local number = string.match(ticket, '^' .. id .. ':(%d+)$')
    if number and #granted < most then
        redis.call('ZREM', KEYS[2], ticket)
        granted[#granted + 1] = tonumber(number)
    end
end
front.running, running = front.running + #granted, running + #granted

local positions = {}
local function find(number)
    local rank = redis.call('ZRANK', KEYS[2], id .. ':' .. number)
    if rank then positions[#positions + 1] = {number, rank + 1} end
end
for _, place in ipairs(enqueued) do find(place[1]) end
for _, number in ipairs(call.positions) do find(number) end

redis.call('HSET', KEYS[1], id, cjson.encode(front))
redis.call('EXPIRE', KEYS[1], call.expire)
redis.call('EXPIRE', KEYS[2], call.expire)
return {count, slots, running, waiting - #granted, places, granted, enqueued, positions, cjson.encode(load)}
"""


@dataclass(kw_only=True)
class FrontReport:
    """A front's call: its state, and its changes since the call before.

    slots: number of slots of the front's own engine.
    queue_size: maximum length of the queue.
    large: number of slots and places of requests with further tickets.
    load: number of answers that the front runs on each upstream.
    requests: number of the first ticket of each new request, and number of its tickets.
    followers: tickets that enter the queue after another one of their request.
    left: tickets that left the queue.
    freed: number of freed slots.
    positions: tickets whose position the front asks for.
    """

    slots: int
    queue_size: int
    large: int
    load: Mapping[str, int]
    requests: Sequence[tuple[int, int]]
    followers: Sequence[int] = ()
    left: Sequence[int] = ()
    freed: int = 0
    positions: Sequence[int] = ()


@dataclass(kw_only=True)
class WholeReport(FrontReport):
    """A report that replaces all that Redis knows of a front. It contains no changes.

    running: number of slots in use.
    waiting: tickets in the queue, with their scores.
    fronts: number of fronts when the queue was last available.
    """

    running: int
    waiting: Sequence[tuple[int, int]]
    fronts: int


class QueueState(NamedTuple):
    """Reply to a call.

    fronts: number of fronts.
    slots: number of slots that the fronts share.
    running: number of slots in use.
    waiting: length of the queue.
    places: number of places of each new request, or :data:`FULL` or :data:`LARGE`.
    granted: tickets of the front that have a slot now.
    scores: tickets that have entered the queue by this call, with their scores.
    positions: tickets in the queue, with their positions; a part of the front's.
    load: number of answers that the other fronts run on each upstream.
    """

    fronts: int
    slots: int
    running: int
    waiting: int
    places: Sequence[int]
    granted: Sequence[int]
    scores: Sequence[tuple[int, int]]
    positions: Sequence[tuple[int, int]]
    load: Mapping[str, int]


class SharedQueue:
    """A front's access to a queue in Redis.

    :param redis: a client of redis-py.
    :param name: name of the queue: 1 to 64 of A-Z a-z 0-9 - _ and dots.
    :param prefix: prefix of all keys, different for each application that shares the Redis.

    Raise ValueError for another name.
    """

    def __init__(self, redis: Redis, name: str, prefix: str = PREFIX) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
            raise ValueError(f"name: must be 1 to 64 of A-Z a-z 0-9 - _ and dots, not {name!r}.")
        self._client = RedisClient(redis, "the shared queue")
        self._redis = redis
        self._script = redis.register_script(SCRIPT)
        base = f"{prefix}queue:{{{name}}}"  # braces: the same node of a cluster
        self._keys = [f"{base}:fronts", f"{base}:waiting", f"{base}:recovery"]
        self._id = secrets.token_hex(8)
        self._number = 0

    async def check(self) -> None:
        """Raise :class:`~aiochatstream.errors.StoreUnavailable` unless Redis responds."""
        await self._client.run(lambda: self._redis.ping(), CALL_SECONDS)

    async def report(self, report: FrontReport) -> QueueState | None:
        """Report to Redis. Return None if it has no report, or not the last one: then send a :class:`WholeReport`.

        Raise :class:`~aiochatstream.errors.StoreUnavailable`; the report may still have arrived.
        """
        self._number += 1
        call = {**vars(report), "load": {digest(name): count for name, count in report.load.items()}}
        call |= {"whole": isinstance(report, WholeReport), "number": self._number}
        call |= {"lease": round(LEASE_SECONDS * 1000), "expire": KEY_SECONDS}
        reply = await self._call(json.dumps(call))
        if reply is None:
            return None
        *state, load = reply
        return QueueState(*state, json.loads(load))  # type: ignore[call-arg]  # as many values as the script returns

    async def leave(self) -> None:
        """Remove the front, its slots and its places."""
        await self._call('{"leaving": true}')

    async def _call(self, argument: str) -> list[Any] | None:
        reply: list[Any] | None = await self._client.run(
            lambda: self._script(self._keys, [self._id, argument]), CALL_SECONDS
        )
        return reply


def digest(name: str) -> str:
    """Return the name of an upstream in Redis, which does not reveal its address."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]
