"""Sessions and conversations in Redis, for several workers: gunicorn examples.redis_conversations:create_app.

Use one of aiohttp's worker classes. REDIS_URL is the address of Redis (default: this machine). Mock answers save the
memory for a model in each worker: pass your model and tokenizer to ChatStream instead.
"""

import os

import aiohttp_session
from aiohttp import web
from redis.asyncio import Redis

from aiochatstream import ChatStream, RedisConversationStore, RedisStorage, ScriptedEngine


async def create_app():
    redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))

    async def close_redis(app):
        yield
        await redis.aclose()

    app = web.Application()
    app.cleanup_ctx.append(close_redis)  # opened first and closed last, so that running answers can be stored
    aiohttp_session.setup(app, RedisStorage(redis))
    chat_stream = ChatStream(
        engine=ScriptedEngine("echo", time_per_token_sec=0.02),
        conversation_store=RedisConversationStore(redis),
        name=f"worker {os.getpid()}",
    )
    chat_stream.add_endpoints(app)
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1", port=8080)
