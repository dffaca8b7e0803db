"""A server with every fault that a soak test detects. Prints its URL. ``python -m tests.bench.leaky_server``"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading

import aiohttp_session
from aiohttp import web
from aiohttp.typedefs import Handler

from aiochatstream import ChatStream, MemoryStorage
from tests.helpers import echo

LEAK_BYTES = 300_000
FAULT_EVERY = 50

leaked: list[object] = []
numbers = itertools.count()


@web.middleware
async def leak(request: web.Request, handler: Handler) -> web.StreamResponse:
    number = next(numbers)
    leaked.append(b"x" * LEAK_BYTES)
    if number % FAULT_EVERY == 0:
        leaked.append(socket.socket())
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    if request.path == "/chat_stream" and number % FAULT_EVERY == 1:
        raise ValueError("a defect")
    response = await handler(request)
    if request.path == "/history" and isinstance(response, web.Response):
        response.text = (response.text or "").replace("-m1", "-of-another-user")
    return response


def main() -> None:
    chat_stream = ChatStream(engine=echo, num_of_concurrent_executions=4, max_queue_size=4)
    app = web.Application(middlewares=[leak])
    aiohttp_session.setup(app, MemoryStorage())
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    chat_stream.setup_openai(app)

    async def leak_slot(app: web.Application) -> None:
        await chat_stream.admission.reserve()

    app.on_startup.append(leak_slot)

    async def serve() -> None:
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
