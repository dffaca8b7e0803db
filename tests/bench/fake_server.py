"""A server that does as its arguments say, and notes in a file, shared with others, each request that it got.

``python -m tests.bench.fake_server --port N --name NAME --notes FILE``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
from pathlib import Path

from aiohttp import web

from tests.bench.scripted_server import delta, done


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--die-at", type=int, help="the number of the request that ends it")
    parser.add_argument("--hold-at", type=int, help="the number of the request that gets no answer")
    parser.add_argument("--child", type=Path, help="start a process that does not hear SIGTERM; write its number there")
    options = parser.parse_args()
    if options.child:
        child = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
        options.child.write_text(str(child.pid))
    count = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        body = await request.json()
        with options.notes.open("a", encoding="utf-8") as notes:
            notes.write(json.dumps([options.name, os.getpid(), body["user_input"]]) + "\n")
        if count == options.die_at:
            print("this is my end", flush=True)
            os._exit(3)
        if count == options.hold_at:
            await asyncio.Event().wait()
        text = "".join(delta(f"{number} ") for number in range(options.tokens)) + done(options.tokens)
        return web.Response(text=text, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/chat_stream", handle)
    web.run_app(app, host="127.0.0.1", port=options.port, print=None, shutdown_timeout=0.1)


if __name__ == "__main__":
    main()
