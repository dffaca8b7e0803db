"""Processes of ``scaling.py``: fake upstreams, our front, and other routers in front of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
from common import ROOT
from peers import ROUTERS, installed_versions, python_path
from server_process import ServerProcess, free_port, is_listening, running_process

START_SECONDS = 120.0
"""Maximum seconds until a server is ready. LiteLLM imports for half a minute on a slow machine."""
SAMPLE_SECONDS = 0.1
"""Seconds between samples of memory and threads."""

FRONT = (
    "{python} -m aiochatstream serve {upstreams} --port {port} --slots-each {slots} --queue {queue} --session memory"
)


class NotMeasured(Exception):
    """A router that is not installed, or does not start."""


class Upstream:
    """A process of :mod:`tests.fake_upstream`, which may die and start again at the same port.

    :param settings: fields of its ``Settings``.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings, self.port = settings, free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process and wait until it listens. Raise RuntimeError if it does not."""
        arguments = ["--port", str(self.port), "--settings", json.dumps(self.settings)]
        self._popen = subprocess.Popen(  # noqa: S603 - this repository's file
            [sys.executable, "-m", "tests.fake_upstream", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if not self._popen.stdout or not self._popen.stdout.readline():
            raise RuntimeError("The fake upstream did not start.")

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal that ends the process, and wait for its end."""
        self._popen.send_signal(number)
        self._popen.send_signal(signal.SIGCONT)
        self._popen.wait()
        if self._popen.stdout:
            self._popen.stdout.close()

    def suspend(self) -> None:
        """Make the process silent, with all connections open."""
        self._popen.send_signal(signal.SIGSTOP)

    async def state(self) -> dict[str, Any]:
        """Return the counters of the fake upstream."""
        return await asyncio.to_thread(self._fetch, None)

    async def change(self, **settings: Any) -> None:
        """Change settings of the fake upstream."""
        await asyncio.to_thread(self._fetch, json.dumps({"settings": settings}).encode())

    def _fetch(self, data: bytes | None) -> dict[str, Any]:
        request = Request(f"{self.url}/fake", data, {"Content-Type": "application/json"})  # noqa: S310 - our own
        with urlopen(request, timeout=20) as response:  # noqa: S310
            state: dict[str, Any] = json.load(response)
            return state


@contextmanager
def running_upstreams(count: int, **settings: Any) -> Iterator[list[Upstream]]:
    """Run fake upstreams during the block."""
    upstreams: list[Upstream] = []
    try:
        for _ in range(count):
            upstreams.append(Upstream(**settings))
        yield upstreams
    finally:
        for upstream in upstreams:
            upstream.end()


@dataclass(frozen=True)
class Meter:
    """CPU time, memory and threads of a server process and its children, during a block."""

    process: psutil.Process
    peaks: dict[str, int]

    def cpu_s(self) -> float:
        """Return the CPU time of all threads so far."""
        times = [process.cpu_times() for process in self._family()]
        return float(sum(time_.user + time_.system for time_ in times))

    def sample(self) -> None:
        """Raise the peaks to the values of now."""
        family = self._family()
        values = {
            "rss": sum(process.memory_info().rss for process in family),
            "threads": sum(process.num_threads() for process in family),
        }
        self.peaks.update({name: max(value, self.peaks.get(name, 0)) for name, value in values.items()})

    def _family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@asynccontextmanager
async def metered(process: psutil.Process) -> AsyncIterator[Meter]:
    """Sample a process during the block."""
    meter = Meter(process, {})

    async def sample() -> None:
        while True:
            meter.sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    task = asyncio.create_task(sample())
    try:
        yield meter
    finally:
        task.cancel()


@asynccontextmanager
async def running_front(
    upstreams: Sequence[Upstream], slots: int = 4096, queue: int = 4096
) -> AsyncIterator[ServerProcess]:
    """Run ``aiochatstream serve`` in front of upstreams during the block."""
    urls = " ".join(upstream.url for upstream in upstreams)
    placeholders = {"python": sys.executable, "slots": str(slots), "queue": str(queue)}
    with running_process(
        FRONT.replace("{upstreams}", urls), placeholders, {**os.environ, "PYTHONPATH": str(ROOT)}
    ) as process:
        await wait_ready(process, "/readyz")
        yield process


@asynccontextmanager
async def running_router(name: str, upstreams: Sequence[Upstream], peers: Path) -> AsyncIterator[ServerProcess]:
    """Run another router in front of upstreams. Raise NotMeasured with a reason if it is not usable."""
    _, reason = installed_versions(name, peers)
    if reason:
        raise NotMeasured(reason)
    with tempfile.TemporaryDirectory(prefix="aiochatstream-bench-") as folder:
        config = Path(folder) / "config.yaml"
        models = [
            {
                "model_name": "fake",
                "litellm_params": {"model": "openai/fake", "api_base": f"{upstream.url}/v1", "api_key": "sk-bench"},
            }
            for upstream in upstreams
        ]
        config.write_text(json.dumps({"model_list": models}))  # JSON is YAML
        python = python_path(name, peers)
        placeholders = {"python": str(python), "bin": str(python.parent), "config": str(config)}
        command = ROUTERS[name].command.replace("{upstreams}", " ".join(upstream.url for upstream in upstreams))
        with running_process(command, placeholders, {**os.environ, **ROUTERS[name].env}) as process:
            try:
                await wait_ready(process, "/v1/models")
            except RuntimeError as error:
                raise NotMeasured(str(error)) from None
            yield process


async def wait_ready(process: ServerProcess, path: str) -> None:
    """Wait until ``path`` is answered with 200. Raise RuntimeError if the process exits or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not (is_listening(process.port) and await asyncio.to_thread(_is_ok, f"{process.url}{path}")):
        if process.exit_reason:
            raise RuntimeError(f"the server {process.exit_reason}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server was not ready after {START_SECONDS:g} s")
        await asyncio.sleep(0.1)


def _is_ok(url: str) -> bool:
    with suppress(HTTPError, OSError), urlopen(url, timeout=5) as response:  # noqa: S310 - 127.0.0.1
        return bool(response.status == 200)
    return False
