"""A server process whose answers never end: ``python -m tests.page.slow_server PORT [REDIS_URL]``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import aiohttp_session
from aiohttp import web
from redis.asyncio import Redis

from aiochatstream import ChatStream, GenerationParams, Limits, MemoryStorage
from aiochatstream.conversations.redis_store import RedisConversationStore
from aiochatstream.sessions.redis_storage import RedisStorage


def endless_answer(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
    """Yield a word, and then empty texts until the answer is stopped."""
    yield "one "
    while True:
        time.sleep(0.05)
        yield ""


def main(port: str, redis_url: str | None = None) -> None:
    app = web.Application()
    if redis_url is None:
        aiohttp_session.setup(app, MemoryStorage())
        chat_stream = ChatStream(engine=endless_answer, limits=Limits(shutdown_timeout=0.1))
    else:
        redis = Redis.from_url(redis_url)
        aiohttp_session.setup(app, RedisStorage(redis))
        store = RedisConversationStore(redis)
        chat_stream = ChatStream(engine=endless_answer, limits=Limits(shutdown_timeout=0.1), conversation_store=store)
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    web.run_app(app, host="127.0.0.1", port=int(port), shutdown_timeout=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
