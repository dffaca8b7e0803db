"""Redis for the tests, which can be killed, paused and restarted, and stores nothing on disk."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.processes import Process, free_port, running


class RedisServer:
    """A Redis server whose port stays the same. It is empty after each :meth:`start`."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._port = free_port()
        self._process: Process | None = None
        self.url = f"redis://127.0.0.1:{self._port}"

    def start(self) -> None:
        options = {"--port": str(self._port), "--bind": "127.0.0.1", "--save": "", "--appendonly": "no"}
        command = ["redis-server", *(part for option in options.items() for part in option)]
        self._process = self._stack.enter_context(running(command, self._folder, cwd=self._folder))
        self._process.wait_for(self._listens, "listening Redis")

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        assert self._process is not None
        self._process.end(signal.SIGKILL)

    def pause(self) -> None:
        """Suspend the process: the kernel still accepts connections, but nothing responds."""
        assert self._process is not None
        self._process.popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.popen.send_signal(signal.SIGCONT)

    def _listens(self) -> bool:
        with suppress(ConnectionError), socket.create_connection(("127.0.0.1", self._port)):
            return True
        return False


@contextmanager
def running_redis(folder: Path) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is missing: apt-get install redis-server")
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        server = RedisServer(folder, stack)
        server.start()
        yield server


async def only_key(redis: Redis, kind: str) -> str:
    """Return the only key that contains ``kind``."""
    [key] = [key async for key in redis.scan_iter(f"*{kind}*")]
    return str(key, "utf-8")
