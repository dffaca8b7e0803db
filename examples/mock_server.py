"""Mock answers, for developing a front end without a model: python examples/mock_server.py."""

import aiohttp_session
from aiohttp import web

from aiochatstream import ChatStream, MemoryStorage, ScriptedEngine


async def create_app():
    chat_stream = ChatStream(engine=ScriptedEngine("round", initial_wait_sec=0.5, time_per_token_sec=0.05))
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app)
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1", port=8080)
