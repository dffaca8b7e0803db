"""Servers on this machine, one for each device, as child processes that listen on unix sockets."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aiochatstream.engines.upstream.upstream import Upstream
from aiochatstream.terminal import os_error_reason

logger = logging.getLogger(__name__)

MIN_BACK_OFF, MAX_BACK_OFF = 0.5, 30.0
"""Seconds until a server that has ended is started again; they double with each start."""

STABLE_SECONDS = 60.0
"""Seconds after which a server that ends is again started after the minimum."""

ORPHAN_SECONDS = 5.0
"""Seconds that a server has to end in order after its parent has ended."""


@dataclass(eq=False)
class _Child:
    """A server, which is a new process after each restart."""

    device: str
    name: str
    socket: Path
    process: Process | None = None
    ends: int = 0


class ChildServers:
    """A server for each device: started at once, watched, and started again when it ends.

    Several servers on ``cpu`` divide the cores: each has the environment variable ``OMP_NUM_THREADS``, unless that is
    set. The command selects any other device. The servers end with this process, also if that is killed: their standard
    input then ends, see :func:`end_with_parent`.

    :param command_of: returns the command of a server, from its device and the path of its unix socket.
    :param devices: for example ``["cuda:0", "cuda:1"]`` or ``["cpu", "cpu"]``.
    :param slots_of: returns the maximum number of concurrent answers of a device's server; None for the pool's.
    :param stop_seconds: seconds that the servers have to end after SIGTERM, before they are killed.

    Raise ValueError with a sentence if a device is invalid.
    """

    def __init__(
        self,
        command_of: Callable[[str, Path], Sequence[str]],
        devices: Sequence[str],
        *,
        slots_of: Callable[[str], int] | None = None,
        stop_seconds: float = 10.0,
    ) -> None:
        if isinstance(devices, str) or not devices or not all(re.fullmatch(r"[a-z]+(:\d+)?", name) for name in devices):
            raise ValueError(f"devices: must be devices such as cpu or cuda:0, not {devices!r}.")
        self._command_of, self._stop_seconds = command_of, stop_seconds
        self._folder = Path(tempfile.gettempdir()) / f"aiochatstream-{secrets.token_hex(8)}"
        self._children = [
            _Child(device, name, self._folder / f"{number}.sock")
            for number, (device, name) in enumerate(zip(devices, _distinct(devices), strict=True))
        ]
        self._environment = dict(os.environ)
        if devices.count("cpu") > 1:
            self._environment.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // devices.count("cpu"))))
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.upstreams = [
            Upstream(f"unix:{child.socket}", None if slots_of is None else slots_of(child.device), name=child.name)
            for child in self._children
        ]
        """Sources of :class:`~aiochatstream.engines.upstream.pool.UpstreamPool`."""

    @property
    def all_failed(self) -> bool:
        """True if each server has ended at least once."""
        return all(child.ends for child in self._children)

    async def open(self) -> None:
        """Start the servers, in a folder that only this user can read. Raise OSError if it cannot be created."""
        self._folder.mkdir(mode=0o700)
        self._tasks = [asyncio.create_task(self._run(child)) for child in self._children]

    async def close(self) -> None:
        """End the servers: with SIGTERM, and with SIGKILL those that remain."""
        self._closing.set()
        for child in self._children:
            _send(child, signal.SIGTERM)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._stop_seconds)
            for child in self._children:
                _send(child, signal.SIGKILL)
            await asyncio.gather(*self._tasks)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _run(self, child: _Child) -> None:
        """Start a server again and again, until :meth:`close`."""
        starts = 0
        while not self._closing.is_set():
            began = time.monotonic()
            reason = await self._run_once(child)
            child.ends += 1
            if self._closing.is_set():
                return
            starts = 1 if time.monotonic() - began > STABLE_SECONDS else starts + 1
            seconds = back_off(starts)
            logger.warning("The server of %s has ended: %s. It starts again in %g s.", child.name, reason, seconds)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), seconds)

    async def _run_once(self, child: _Child) -> str:
        """Run a server to its end, and return the reason of the end."""
        child.socket.unlink(missing_ok=True)
        command = self._command_of(child.device, child.socket)
        try:  # a session of its own: Ctrl-C in a terminal is for this process, which ends the servers after its answers
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, env=self._environment, start_new_session=True
            )
        except OSError as error:
            return os_error_reason(error)
        child.process = process
        if self._closing.is_set():
            _send(child, signal.SIGTERM)
        logger.info("Started the server of %s as process %d.", child.name, process.pid)
        code = await process.wait()
        child.process = None
        return f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def back_off(starts: int) -> float:
    """Return the seconds before the next start, after ``starts`` (at least 1) servers that ended soon."""
    return min(MAX_BACK_OFF, MIN_BACK_OFF * float(2 ** min(starts - 1, 10)))


def end_with_parent() -> None:
    """Start a thread that ends this process when its parent has ended: when the standard input ends.

    Called in a server that :class:`ChildServers` has started. The process gets SIGTERM, and SIGKILL if it has not ended
    a few seconds later.
    """
    threading.Thread(target=_wait_for_parent, name="wait for parent", daemon=True).start()


def _wait_for_parent() -> None:
    with suppress(OSError, ValueError):
        while os.read(sys.stdin.fileno(), 1024):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _send(child: _Child, number: signal.Signals) -> None:
    """Send a signal to a server, SIGKILL also to the processes that it has started."""
    if child.process is None:
        return
    with suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(child.process.pid, number)
        else:
            child.process.send_signal(number)


def _distinct(devices: Sequence[str]) -> list[str]:
    """Return a name for each device: ``cpu-0`` and ``cpu-1`` for two of the same name."""
    counts = {device: iter(range(len(devices))) for device in devices}
    return [device if devices.count(device) == 1 else f"{device}-{next(counts[device])}" for device in devices]


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
