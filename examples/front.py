"""A chat server whose answers other servers generate: python examples/front.py http://gpu1:8000 http://gpu2:8000."""

import sys

import aiohttp_session
from aiohttp import web

from aiochatstream import ChatStream, Limits, MemoryStorage
from aiochatstream.engines.upstream import UpstreamEngine


async def create_app(*urls):
    chat_stream = ChatStream(
        engine=UpstreamEngine(urls, slots=64),  # at most the max_num_seqs of each server
        max_queue_size=500,
        limits=Limits(context_len="max", fill_context=True, shutdown_timeout=60),
    )
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    chat_stream.add_endpoints(app)
    chat_stream.setup_openai(app)
    return app


if __name__ == "__main__":
    web.run_app(create_app(*sys.argv[1:]), host="127.0.0.1", port=8080, backlog=4096)
