"""A server that logs its requests to a file, which other servers may share, and fails on command.

``python -m tests.bench.fake_server --port N --name NAME --request-log FILE``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
from pathlib import Path

from aiohttp import web

from tests.bench.events import delta, done


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--request-log", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--die-at", type=int, help="number of the request that ends the process")
    parser.add_argument("--hold-at", type=int, help="number of the request that gets no answer")
    parser.add_argument("--child", type=Path, help="start a process that ignores SIGTERM; write its pid there")
    options = parser.parse_args()
    if options.child:
        child = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
        options.child.write_text(str(child.pid))
    count = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        body = await request.json()
        with options.request_log.open("a", encoding="utf-8") as log:
            log.write(json.dumps([options.name, os.getpid(), body["user_input"]]) + "\n")
        if count == options.die_at:
            print("last words", flush=True)
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
