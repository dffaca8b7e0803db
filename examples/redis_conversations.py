"""Workers share sessions and conversations: gunicorn examples.redis_conversations:create_app, with aiohttp's workers.

Redis is where REDIS_URL says, or on this machine. The answers are mock ones, so that several workers need no memory for
as many models: give ChatStream your model and tokenizer instead.
"""

import os

import aiohttp_session
from aiohttp import web
from redis.asyncio import Redis

from aiochatstream import ChatStream
from aiochatstream.conversations.redis_store import RedisConversationStore
from aiochatstream.sessions.redis_storage import RedisStorage


async def create_app():
    redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))

    async def close_redis(app):
        yield
        await redis.aclose()

    app = web.Application()
    app.cleanup_ctx.append(close_redis)  # the first to open is the last to close: running answers are still kept
    aiohttp_session.setup(app, RedisStorage(redis))
    chat_stream = ChatStream(
        use_mock_response=True,
        mock_params={"type": "echo", "time_per_token_sec": 0.02},
        conversation_store=RedisConversationStore(redis),
        name=f"worker {os.getpid()}",
    )
    chat_stream.append_apis(app, {"all": True})
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1", port=8080)
