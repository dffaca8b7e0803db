"""Programs that serve: started on a port of their own, paused while others have their turn, and ended with all they
started."""

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

END_SECONDS = 10.0
"""Until a server that was asked to end is killed."""
SETTLE_SECONDS = 1.0
"""Until one that crashed is gone, or has let go of requests that were hung up on."""


@dataclass(frozen=True)
class Program:
    """A process with a group of its own. What it prints goes to a file, for the sentence that says why it ended."""

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
    def ended(self) -> str:
        """How it ended, in a clause; empty while it runs."""
        code = self.popen.poll()
        if code is None:
            return ""
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        said = [line for line in Path(self.log.name).read_text(errors="replace").splitlines() if line.strip()]
        return f"it ended {how}{f' ({said[-1].strip()[:200]})' if said else ''}"

    async def settle(self) -> None:
        """Give it the moment between broken connections and the end of the process, or of its work for them."""
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self.popen.wait, SETTLE_SECONDS)

    def pause(self) -> None:
        """Take the processor from it: some servers spin while they have nothing to do."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def ask_to_end(self) -> None:
        """It and all it started."""
        self._signal(signal.SIGTERM)
        self.go_on()  # what is paused hears nothing

    def end(self) -> None:
        """Ask it and all it started to end; kill what has not after a while, or at a second Ctrl-C."""
        self.ask_to_end()
        try:
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(END_SECONDS)
        finally:
            self._signal(signal.SIGKILL)
            self.popen.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)


@contextmanager
def program(command: str, fill: Mapping[str, str], env: Mapping[str, str]) -> Iterator[Program]:
    """Start ``command`` and end it with the block. Raises RuntimeError where it cannot be started.

    :param command: as in a shell, but without one; ``{port}`` and the names in ``fill`` are replaced in each word.
    """
    port = free_port()
    words = [replaced(word, {**fill, "port": str(port)}) for word in shlex.split(command)]
    with tempfile.NamedTemporaryFile(prefix="aiochatstream-bench-") as log:
        try:
            popen = subprocess.Popen(  # noqa: S603 - what the user named
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(env), start_new_session=True
            )
        except FileNotFoundError:
            raise RuntimeError(f"there is no program {words[0]}") from None
        except OSError as error:
            raise RuntimeError(f"{words[0]} cannot be started: {error.strerror}") from None
        started = Program(popen, port, log)
        try:
            yield started
        finally:
            started.end()


def replaced(word: str, fill: Mapping[str, str]) -> str:
    """Only the names that are known: other braces stay as they are."""
    for name, value in fill.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
