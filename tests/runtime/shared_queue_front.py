"""A front in a process: ``python -m tests.runtime.shared_queue_front REDIS_URL SLOTS QUEUE_SIZE REQUESTS``.

It reserves for all requests, a few at a time, when the list ``start`` in Redis has an element, pushes the number of
places to ``decided``, and runs the answers when ``run`` has an element. It prints the times at which answers begin and
end.
"""

from __future__ import annotations

import asyncio
import sys
import time

from redis.asyncio import Redis

from aiochatstream.errors import TooManyRequests
from aiochatstream.runtime.admission import Ticket
from aiochatstream.runtime.redis_admission import RedisAdmission

ANSWER_SECONDS = 0.01
TOGETHER = 10


async def answer(ticket: Ticket) -> None:
    async for _ in ticket.positions():
        pass
    print("begin", time.monotonic_ns())
    await asyncio.sleep(ANSWER_SECONDS)
    print("end", time.monotonic_ns())
    ticket.release(answered=True)


async def main(url: str, slots: int, queue_size: int, requests: int) -> None:
    async with Redis.from_url(url) as redis:
        front = RedisAdmission(redis, "test", slots, queue_size)
        await front.open()
        await redis.blpop(["start"])
        results: list[Ticket | BaseException] = []
        while len(results) < requests:  # so that the tickets of several fronts take turns
            count = min(TOGETHER, requests - len(results))
            results += await asyncio.gather(*[front.reserve() for _ in range(count)], return_exceptions=True)
        tickets = [result for result in results if isinstance(result, Ticket)]
        assert all(isinstance(result, Ticket | TooManyRequests) for result in results)
        await redis.rpush("decided", len(tickets))
        await redis.blpop(["run"])
        await asyncio.gather(*map(answer, tickets))
        await front.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
