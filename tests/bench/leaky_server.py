"""A server with every fault that a soak looks for. Prints its URL. ``python -m tests.bench.leaky_server``"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from typing import Any

import aiohttp_session
from aiohttp import web

from aiochatstream import ChatStream, MemoryStorage
from tests.helpers import echo

LEAK_BYTES = 300_000
FAULT_EVERY = 50

kept: list[Any] = []
numbers = itertools.count()


@web.middleware
async def leak(request: web.Request, handler: Any) -> web.StreamResponse:
    number = next(numbers)
    kept.append(b"x" * LEAK_BYTES)
    if number % FAULT_EVERY == 0:
        kept.append(socket.socket())
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    if request.path == "/chat_stream" and number % FAULT_EVERY == 1:
        raise ValueError("a bug")
    response: web.StreamResponse = await handler(request)
    if request.path == "/history" and isinstance(response, web.Response):
        response.text = (response.text or "").replace("-m1", "-of-somebody-else")
    return response


def main() -> None:
    chat_stream = ChatStream(engine=echo, num_of_concurrent_executions=4, max_queue_size=4)
    app = web.Application(middlewares=[leak])
    aiohttp_session.setup(app, MemoryStorage())
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    chat_stream.setup_openai(app)

    async def lose_a_slot(app: web.Application) -> None:
        chat_stream.admission.reserve()

    app.on_startup.append(lose_a_slot)

    async def serve() -> None:
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
