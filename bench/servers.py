"""Servers for the other scripts, each in a process of its own.

``python bench/servers.py KIND`` serves on a free port of 127.0.0.1, prints its URL when it is ready, and ends when its
stdin does, so none outlives the script that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import aiohttp_session
import psutil
from aiohttp import web
from server_process import END_SECONDS

from aiochatstream import ChatStream, GenerationParams, Limits, MemoryStorage

START_SECONDS = 180.0
"""A first load of the small model converts it."""
LAG_STEP = 0.005
"""Seconds between two looks at the event loop."""
MARK = "~"
"""Stands once in each piece of an answer, so that a client can count pieces by counting bytes."""
PIECE = f"word{MARK} "
PACE_SECONDS = 0.05
"""Between two pieces of an answer that is not made at once."""

MARKDOWN = """\
## A heading with `code` in it

A paragraph of some words, of which **a few** are *marked*, and which has [a link](https://example.org/) in it. It goes
on for a while, as models do.

- a list
- of three
- points

1. And a list
2. with numbers

| a table | of two columns |
|---|---|
| with | some |
| short | rows |

```python
def fibonacci(count: int) -> list[int]:
    \"\"\"The first numbers of the sequence.\"\"\"
    numbers = [0, 1]
    while len(numbers) < count:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:count]
```

> 引用文です。日本語の文章も、少しずつ表示されます。

"""

ENGINES = ("pieces", "paced", "hold", "words", "markdown")
BARE = ("bare", "bare-at-once", "bare-paced", "bare-hold")
"""At once: the event loop does not turn between two chunks."""

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Server:
    """A server process and where it listens."""

    url: str
    process: psutil.Process

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def cpu_s(self) -> float:
        """CPU time of all its threads so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss(self) -> int:
        """Resident memory in bytes."""
        return int(self.process.memory_info().rss)


@contextmanager
def started(kind: str, *options: str) -> Iterator[Server]:
    """Start a server of this kind and end it with the block. Raises RuntimeError where it does not start."""
    command = [sys.executable, str(Path(__file__)), kind, *options]
    popen = subprocess.Popen(  # noqa: S603 - this file
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    timer = threading.Timer(START_SECONDS, popen.kill)
    timer.start()
    try:
        url = popen.stdout.readline().strip() if popen.stdout else ""
        timer.cancel()
        if not url:
            raise RuntimeError(f"The server {kind!r} did not start.")
        yield Server(url, psutil.Process(popen.pid))
    finally:
        timer.cancel()
        for pipe in (popen.stdin, popen.stdout):
            if pipe is not None:
                pipe.close()
        try:
            popen.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


# What they answer


def engine(kind: str, pieces: int) -> Any:
    """The generator function behind ``kind``."""

    def at_once(messages: Messages, params: GenerationParams) -> Iterator[str]:
        for _ in range(pieces):
            yield PIECE

    def hold(messages: Messages, params: GenerationParams) -> Iterator[str]:
        yield PIECE
        threading.Event().wait()  # until the process ends
        yield ""

    def paced(messages: Messages, params: GenerationParams) -> Iterator[str]:
        for _ in range(pieces):
            time.sleep(PACE_SECONDS)
            yield stamped()

    def words(messages: Messages, params: GenerationParams) -> Iterator[str]:
        """Echoes, a word each millisecond."""
        for number in range(pieces):
            time.sleep(0.001)
            yield f"{messages[-1]['content']} " if number == 0 else f"{number} "

    def markdown(messages: Messages, params: GenerationParams) -> Iterator[str]:
        """What a page has work with, quicker than people read: a word or a line's end each 4 ms."""
        for piece in islice(cycle(re.findall(r"\S+ ?|\n+ *", MARKDOWN)), pieces):
            time.sleep(0.004)
            yield piece

    return {"pieces": at_once, "hold": hold, "paced": paced, "words": words, "markdown": markdown}[kind]


def stamped() -> str:
    """A piece that tells when it was made: a clock that all processes of a machine share, in ns."""
    return f"{time.monotonic_ns()}{MARK} "


def bare_chunks(wire_format: str, pieces: int) -> list[bytes]:
    """An answer's chunks as ChatStream writes them."""
    if wire_format == "text":
        return [PIECE.encode()] * pieces
    message_id = "00000000-0000-4000-8000-000000000000"
    usage = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": pieces}
    timing = {"queue_s": 0.0001, "ttft_s": 0.0123, "total_s": 0.1234}
    done = {"message_id": message_id, "finish_reason": "stop", "usage": usage, "timing": timing}

    def event(name: str, data: dict[str, Any]) -> bytes:
        return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()

    return [
        event("start", {"message_id": message_id}),
        *[event("delta", {"text": PIECE})] * pieces,
        event("done", done),
    ]


def bare(wire_format: str, pieces: int, kind: str) -> web.Application:
    """The least that aiohttp can do: read the request, write each chunk."""
    chunks = bare_chunks(wire_format, pieces)
    content_type = {"text": "text/plain", "sse": "text/event-stream"}[wire_format]

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.json()
        response = web.StreamResponse(headers={"Content-Type": f"{content_type}; charset=utf-8"})
        await response.prepare(request)
        for chunk in chunks:
            if kind == "bare-paced":
                await asyncio.sleep(PACE_SECONDS)
                chunk = chunk.replace(PIECE.encode(), stamped().encode())
            await response.write(chunk)
            if kind == "bare-hold":
                await asyncio.Event().wait()
            if kind != "bare-at-once":
                await asyncio.sleep(0)
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_post("/chat_stream", handle)
    return app


def chatting(options: argparse.Namespace) -> tuple[web.Application, ChatStream]:
    """The whole stack."""
    limits: dict[str, Any] = {"num_of_concurrent_executions": options.slots, "max_queue_size": options.queue}
    if options.kind == "model":
        from aiochatstream.engines.transformers.loading import choose_device, choose_dtype, loaders, locate

        device = choose_device()
        model, tokenizer = loaders(locate(None), device, choose_dtype(device))
        chat_stream = ChatStream(model=model, tokenizer=tokenizer, device=device, **limits)
    else:
        max_new_tokens = max(256, options.pieces + 1)
        chat_stream = ChatStream(
            engine=engine(options.kind, options.pieces),
            limits=Limits(max_queue_wait=600.0),
            params=GenerationParams(max_new_tokens=max_new_tokens),
            **limits,
        )
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    chat_stream.setup_openai(app)
    return app, chat_stream


class LoopLag:
    """How late the event loop runs what is due: looked at each 5 ms. GET /lag gives the list and begins a new one."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def setup(self, app: web.Application) -> None:
        app.router.add_get("/lag", self._tell)
        app.cleanup_ctx.append(self._run_in)

    async def _tell(self, request: web.Request) -> web.Response:
        told, self._seconds = self._seconds, []
        return web.json_response(told)

    async def _run_in(self, app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self._look())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _look(self) -> None:
        while True:
            due = time.perf_counter() + LAG_STEP  # uvloop's own clock knows whole milliseconds only
            await asyncio.sleep(LAG_STEP)
            self._seconds.append(max(0.0, time.perf_counter() - due))


async def serve(options: argparse.Namespace) -> None:
    chat_stream: ChatStream | None = None
    if options.kind.startswith("bare"):
        app = bare(options.format, options.pieces, options.kind)
    else:
        app, chat_stream = chatting(options)
    if options.kind == "model":
        LoopLag().setup(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2048)
        await site.start()
        if chat_stream is not None:
            await chat_stream.wait_ready()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await stdin_ends()
    finally:
        if options.kind.endswith("hold"):
            os._exit(0)  # its answers never end
        await runner.cleanup()


async def stdin_ends() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), lambda: os.read(sys.stdin.fileno(), 4096) or ended.set())
    await ended.wait()
    loop.remove_reader(sys.stdin.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*ENGINES, "model", *BARE])
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--queue", type=int, default=5)
    parser.add_argument("--pieces", type=int, default=200)
    parser.add_argument("--format", choices=["text", "sse"], default="text", help="what a bare server writes")
    parser.add_argument("--profile", metavar="FILE", help="cProfile of the event loop's thread, for pstats")
    options = parser.parse_args()
    profile = cProfile.Profile() if options.profile else None
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        if profile is not None:
            profile.enable()
        try:
            runner.run(serve(options))
        finally:
            if profile is not None:
                profile.disable()
                profile.dump_stats(options.profile)


if __name__ == "__main__":
    main()
