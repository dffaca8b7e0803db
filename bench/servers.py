"""Servers for the other scripts, each in its own process.

``python bench/servers.py KIND`` listens on a free port of 127.0.0.1 and prints its URL when it is ready. It exits at
the end of stdin, so that it does not outlive the script that started it.
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
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp_session
import psutil
from aiohttp import web
from server_process import STOP_SECONDS

if TYPE_CHECKING:
    from aiochatstream import ChatStream, Engine, GenerationParams

START_SECONDS = 180.0
"""Maximum seconds until a server is ready. The first load of the small model converts it."""
LAG_STEP = 0.005
"""Seconds between measurements of the event loop's lag."""
MARK = "~"
"""Character that each chunk contains once, so that a client can count chunks by counting bytes."""
CHUNK = f"word{MARK} "
PACE_SECONDS = 0.05
"""Seconds between chunks of a paced answer."""

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

ENGINES = ("chunks", "paced", "hold", "words", "markdown")
BARE = ("bare", "bare-at-once", "bare-paced", "bare-hold")
"""Kinds without aiochatstream. With ``at-once``, the event loop does not iterate between chunks."""

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class BenchServer:
    """A server process and its URL."""

    url: str
    process: psutil.Process

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def cpu_s(self) -> float:
        """Return the CPU time of all threads so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss(self) -> int:
        """Return the resident memory in bytes."""
        return int(self.process.memory_info().rss)


@contextmanager
def running_server(kind: str, *options: str) -> Iterator[BenchServer]:
    """Run a server of this kind during the block. Raise RuntimeError if it does not start."""
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
        yield BenchServer(url, psutil.Process(popen.pid))
    finally:
        timer.cancel()
        for pipe in (popen.stdin, popen.stdout):
            if pipe is not None:
                pipe.close()
        try:
            popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop of uvloop if it is installed, otherwise asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def engine(kind: str, chunks: int) -> Callable[[Messages, GenerationParams], Iterator[str]]:
    """Return the generator function of ``kind``."""

    def immediate(messages: Messages, params: GenerationParams) -> Iterator[str]:
        for _ in range(chunks):
            yield CHUNK

    def hold(messages: Messages, params: GenerationParams) -> Iterator[str]:
        yield CHUNK
        threading.Event().wait()  # until the process ends
        yield ""

    def paced(messages: Messages, params: GenerationParams) -> Iterator[str]:
        for _ in range(chunks):
            time.sleep(PACE_SECONDS)
            yield timestamped_chunk()

    def words(messages: Messages, params: GenerationParams) -> Iterator[str]:
        """Echo the message, then yield a number each millisecond."""
        for number in range(chunks):
            time.sleep(0.001)
            yield f"{messages[-1]['content']} " if number == 0 else f"{number} "

    def markdown(messages: Messages, params: GenerationParams) -> Iterator[str]:
        """Yield a word or line end of Markdown each 4 ms, faster than people read."""
        for text in islice(cycle(re.findall(r"\S+ ?|\n+ *", MARKDOWN)), chunks):
            time.sleep(0.004)
            yield text

    return {"chunks": immediate, "hold": hold, "paced": paced, "words": words, "markdown": markdown}[kind]


def tiny_engine(family: str, context: int, memory_contexts: int | None) -> Engine:
    """Return an engine with a tiny random model, and memory for ``memory_contexts`` whole contexts if it is set."""
    import torch
    from random_models import tiny_model, token_bytes
    from transformers import ByT5Tokenizer

    from aiochatstream.engines.transformers.engine import TransformersEngine
    from aiochatstream.engines.transformers.memory_plan import SNAPSHOT_SHARE

    torch.set_num_threads(1)
    model = tiny_model(family, context)
    share = 1.0 if family == "llama" else 1 - SNAPSHOT_SHARE  # the rest is for states
    size = None if memory_contexts is None else int(memory_contexts * context * token_bytes(model.config) / share)
    return TransformersEngine(model, ByT5Tokenizer(), kv_cache_bytes=size)


def timestamped_chunk() -> str:
    """Return a chunk with the time in ns, by a clock that all processes of a machine share."""
    return f"{time.monotonic_ns()}{MARK} "


def wire_chunks(wire_format: str, chunks: int) -> list[bytes]:
    """Return the bytes of an answer, chunk by chunk, as ChatStream writes them."""
    if wire_format == "text":
        return [CHUNK.encode()] * chunks
    message_id = "00000000-0000-4000-8000-000000000000"
    usage = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": chunks}
    timing = {"queue_s": 0.0001, "ttft_s": 0.0123, "total_s": 0.1234}
    done = {"message_id": message_id, "finish_reason": "stop", "usage": usage, "timing": timing}

    def event(name: str, data: dict[str, Any]) -> bytes:
        return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()

    return [
        event("start", {"message_id": message_id}),
        *[event("delta", {"text": CHUNK})] * chunks,
        event("done", done),
    ]


def bare_app(wire_format: str, chunk_count: int, kind: str) -> web.Application:
    """Return an application that does the minimum with aiohttp: read the request, write each chunk."""
    chunks = wire_chunks(wire_format, chunk_count)
    content_type = {"text": "text/plain", "sse": "text/event-stream"}[wire_format]

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.json()
        response = web.StreamResponse(headers={"Content-Type": f"{content_type}; charset=utf-8"})
        await response.prepare(request)
        for chunk in chunks:
            if kind == "bare-paced":
                await asyncio.sleep(PACE_SECONDS)
                chunk = chunk.replace(CHUNK.encode(), timestamped_chunk().encode())
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


def chat_app(options: argparse.Namespace) -> tuple[web.Application, ChatStream]:
    """Return an application with the whole stack of aiochatstream."""
    from aiochatstream import ChatStream, GenerationParams, Limits, MemoryStorage
    from aiochatstream.prompts.presets import ChatPromptCyberAgentOpenCalm

    limits: dict[str, Any] = {"num_of_concurrent_executions": options.slots, "max_queue_size": options.queue}
    if options.kind == "model":
        from aiochatstream.engines.transformers.loading import loaders

        model, tokenizer = loaders(None)
        chat_stream = ChatStream(model=model, tokenizer=tokenizer, **limits)
    elif options.kind == "tiny":
        chat_stream = ChatStream(
            engine=tiny_engine(options.family, options.context, options.memory_contexts),
            chat_prompt_clazz=ChatPromptCyberAgentOpenCalm,
            params=GenerationParams(max_new_tokens=64, temperature=0.0),
            **limits,
        )
    else:
        max_new_tokens = max(256, options.chunks + 1)
        chat_stream = ChatStream(
            engine=engine(options.kind, options.chunks),
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
    """Lag of the event loop, measured each 5 ms. GET /lag returns the measured seconds and starts a new list."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def setup(self, app: web.Application) -> None:
        app.router.add_get("/lag", self._respond)
        app.cleanup_ctx.append(self._run_in)

    async def _respond(self, request: web.Request) -> web.Response:
        seconds, self._seconds = self._seconds, []
        return web.json_response(seconds)

    async def _run_in(self, app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self._measure())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _measure(self) -> None:
        while True:
            due = time.perf_counter() + LAG_STEP  # uvloop's clock has a resolution of 1 ms
            await asyncio.sleep(LAG_STEP)
            self._seconds.append(max(0.0, time.perf_counter() - due))


async def serve(options: argparse.Namespace) -> None:
    chat_stream: ChatStream | None = None
    if options.kind.startswith("bare"):
        app = bare_app(options.format, options.chunks, options.kind)
    else:
        app, chat_stream = chat_app(options)
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
        await wait_for_stdin_end()
    finally:
        if options.kind.endswith("hold"):
            os._exit(0)  # the answers never end
        await runner.cleanup()


async def wait_for_stdin_end() -> None:
    at_end = asyncio.Event()
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            at_end.set()

    loop.add_reader(sys.stdin.fileno(), read)
    await at_end.wait()
    loop.remove_reader(sys.stdin.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*ENGINES, "model", "tiny", *BARE])
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--queue", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--format", choices=["text", "sse"], default="text", help="format of a bare server")
    parser.add_argument("--family", default="llama", help="family of a tiny model")
    parser.add_argument("--context", type=int, default=512, help="context of a tiny model")
    parser.add_argument("--memory-contexts", type=int, metavar="N", help="kv_cache_bytes of a tiny model, in contexts")
    parser.add_argument("--profile", metavar="FILE", help="write a cProfile of the event loop's thread")
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
