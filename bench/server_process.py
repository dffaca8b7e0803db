"""Server processes: start on a free port, pause during the turns of other servers, stop with all child processes."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

STOP_SECONDS = 10.0
"""Seconds between SIGTERM and SIGKILL."""
SETTLE_SECONDS = 1.0
"""Seconds until a crashed process has ended, or a running one has stopped requests of disconnected clients."""


@dataclass(frozen=True)
class ServerProcess:
    """A process in its own process group. A file collects its output, for the reason if it exits."""

    popen: subprocess.Popen[bytes]
    port: int
    log: IO[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.popen.pid)

    @property
    def exit_reason(self) -> str:
        """Exit code or signal, and the last line of output, as a clause; empty while the process runs."""
        code = self.popen.poll()
        if code is None:
            return ""
        reason = f"exited with code {code}" if code >= 0 else f"terminated by {signal.Signals(-code).name}"
        lines = [line for line in Path(self.log.name).read_text(errors="replace").splitlines() if line.strip()]
        return f"{reason}{f' ({lines[-1].strip()[:200]})' if lines else ''}"

    async def settle(self) -> None:
        """Wait for a crashing process to exit, or for a running one to clean up after lost connections."""
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self.popen.wait, SETTLE_SECONDS)

    def pause(self) -> None:
        """Suspend the process group, because some idle servers use CPU time."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Send SIGTERM to the process group."""
        self._signal(signal.SIGTERM)
        self.resume()  # a suspended process does not handle signals

    def stop(self) -> None:
        """Terminate the process group. Kill it after STOP_SECONDS, or at a second Ctrl-C."""
        self.terminate()
        try:
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(STOP_SECONDS)
        finally:
            self._signal(signal.SIGKILL)
            self.popen.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)


@contextmanager
def running_process(command: str, placeholders: Mapping[str, str], env: Mapping[str, str]) -> Iterator[ServerProcess]:
    """Run ``command`` until the end of the block. Raise RuntimeError if it cannot be started.

    :param command: words with shell quoting, run without a shell. ``{port}`` and ``placeholders`` are substituted.
    """
    port = free_port()
    words = [substitute(word, {**placeholders, "port": str(port)}) for word in shlex.split(command)]
    with tempfile.NamedTemporaryFile(prefix="aiochatstream-bench-") as log:
        try:
            popen = subprocess.Popen(  # noqa: S603 - the user's command
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(env), start_new_session=True
            )
        except FileNotFoundError:
            raise RuntimeError(f"program not found: {words[0]}") from None
        except OSError as error:
            raise RuntimeError(f"{words[0]} cannot be started: {error.strerror}") from None
        process = ServerProcess(popen, port, log)
        try:
            yield process
        finally:
            process.stop()


def substitute(word: str, placeholders: Mapping[str, str]) -> str:
    """Replace ``{name}`` for each placeholder. Other braces remain."""
    for name, value in placeholders.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
