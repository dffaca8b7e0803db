"""A server in front of others, in a process of its own, and its users: for trials with other programs."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

ROOT = Path(__file__).parents[1]

PATIENCE = 600.0
"""Seconds to wait for an event: servers of models start slowly on a busy machine."""


class Stopwatch:
    """Seconds since its creation."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


class StreamedAnswer(NamedTuple):
    """A whole answer. longest_gap: seconds between two of its texts."""

    text: str
    longest_gap: float


def report(*words: object) -> None:
    """Print a line immediately."""
    print(*words, flush=True)


async def until(condition: Callable[[], Awaitable[Any]], event: str) -> Any:
    """Return the first true result of ``condition``."""
    watch = Stopwatch()
    while not (result := await condition()):
        if watch.seconds > PATIENCE:
            raise AssertionError(f"Waited {PATIENCE:g} s for: {event}.")
        await asyncio.sleep(0.1)
    return result


async def is_ready(url: str) -> bool:
    """Return True if the server at ``url`` is ready."""
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


@asynccontextmanager
async def front_process(
    upstreams: Sequence[str], port: int, key: str, *, slots_each: int, max_new_tokens: int
) -> AsyncIterator[Front]:
    """Run a server in front of ``upstreams``, with greedy answers. Its log is printed if the block fails.

    :param key: API key of the upstreams.
    """
    folder = Path(tempfile.mkdtemp(prefix="aiochatstream-trial-"))
    key_file, log_file = folder / "key", folder / "log"
    key_file.touch(0o600)
    key_file.write_text(key)
    options = ["--port", str(port), "--slots-each", str(slots_each), "--upstream-key-file", str(key_file)]
    options += ["--temperature", "0", "--max-new-tokens", str(max_new_tokens)]
    front = Front(f"http://127.0.0.1:{port}")
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aiochatstream", "serve", *upstreams, *options), cwd=ROOT, stdout=log, stderr=log
        )

    async def has_started() -> bool:
        assert process.returncode is None, "The front ended."
        return await is_ready(front.url)

    try:
        await until(has_started, "the front is ready")
        yield front
    except BaseException:
        report(log_file.read_text())
        raise
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.wait()
        shutil.rmtree(folder)


class Front:
    """A running front."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def ask(self, text: str, started: asyncio.Event | None = None) -> StreamedAnswer:
        """Ask as a new user. Raise AssertionError if the answer is not whole.

        :param started: set when the answer has several texts.
        """
        pieces: list[str] = []
        gap, last, name = 0.0, 0.0, ""
        headers = {"Accept": "text/event-stream"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/chat_stream", json={"user_input": text}, headers=headers) as response,
        ):
            assert response.status == 200, await response.text()
            async for line in response.content:
                field, _, data = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = data
                elif field == "data" and name == "delta":
                    now = time.monotonic()
                    gap, last = max(gap, now - last) if pieces else 0.0, now
                    pieces.append(json.loads(data)["text"])
                    if started is not None and len(pieces) > 8:
                        started.set()
                elif field == "data" and name in ("done", "error"):
                    assert name == "done", data
                    return StreamedAnswer("".join(pieces), gap)
        raise AssertionError("The answer broke off.")

    async def answering(self) -> list[str]:
        """Return the URLs of the servers that answer at present."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        prefix = 'aiochatstream_upstream_running{server="'
        rows = [line for line in lines if line.startswith(prefix) and not line.endswith(" 0.0")]
        return ["http://" + row.removeprefix(prefix).partition('"')[0] for row in rows]
