"""Processes of the tests: starting them, waiting for their output or replies, and always ending them."""

from __future__ import annotations

import atexit
import fcntl
import functools
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import pytest

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable

CAN_FORK = hasattr(os, "pidfd_open")
"""True if :mod:`tests.fork_server` can run: on Linux."""

START_PATIENCE = 90.0
"""Seconds to wait for a process that imports torch and loads a model, on a busy machine."""

END_PATIENCE = 15.0
"""Seconds to wait for a process to end after a signal or a usage error."""


class Program(Protocol):
    """The part of subprocess.Popen that tests use."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


@dataclass
class Process:
    """A running program in a process group of its own. Its output is written to files, so that it never blocks."""

    popen: Program
    out_file: Path
    err_file: Path

    @property
    def out(self) -> str:
        return self.out_file.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self.err_file.read_text(errors="replace")

    @property
    def output(self) -> str:
        """All output of the process, for the message of a failed test."""
        return f"\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    def wait_for(self, condition: Callable[[], T | None], event: str) -> T:
        """Poll ``condition`` until its result is true, and return the result. Fails if the process ends first."""
        deadline = time.monotonic() + START_PATIENCE
        while not (result := condition()):
            exit_code = self.popen.poll()
            assert exit_code is None, f"The process ended with {exit_code}, waiting for: {event}.{self.output}"
            assert time.monotonic() < deadline, f"Waited {START_PATIENCE:g} seconds for: {event}.{self.output}"
            time.sleep(0.05)
        return result

    def wait_ended(self, patience: float = END_PATIENCE) -> int:
        """Wait for the end of the process and return its exit code."""
        try:
            return self.popen.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"The process did not end within {patience:g} seconds.{self.output}") from None

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to the process and return its exit code."""
        self.popen.send_signal(number)
        return self.wait_ended()


class ForkedProgram:
    """A Python program that the fork server has started: as Popen, without the seconds that imports take.

    :param command: :data:`PYTHON`, and a script, ``-m`` and a module, or ``-c`` and code, with their arguments.
    :param streams: descriptors of its input, output and errors.
    :param env: its environment. Packages that the server has imported do not see changes of the variables that they
        read when imported (``HF_HOME``, ``OMP_NUM_THREADS``).
    :param terminal: make its input its controlling terminal.
    """

    def __init__(
        self,
        command: Sequence[str],
        streams: Sequence[int],
        *,
        cwd: Path = ROOT,
        env: Mapping[str, str],
        terminal: bool = False,
    ) -> None:
        assert command[0] == PYTHON
        self._client, connection = socket.socketpair()
        request = {"arguments": command[1:], "cwd": str(cwd), "env": dict(env), "terminal": terminal}
        with connection:
            socket.send_fds(fork_server(), [json.dumps(request).encode()], [*streams, connection.fileno()])
        self._replies = self._client.makefile()
        self.pid = int(self._replies.readline())
        self._code: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code, and None while the program runs."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raise TimeoutExpired after ``timeout`` seconds."""
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("the program", timeout or 0)
        return code

    def _wait(self, timeout: float | None) -> int | None:
        if self._code is None and select.select([self._client], [], [], timeout)[0]:
            with self._lock:  # another thread may read it
                if self._code is None:
                    self._code = int(self._replies.readline())
        return self._code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill the program if it still runs, with its children, and wait for its end."""
        with self._client, self._replies:
            self._client.shutdown(socket.SHUT_WR)
            self._replies.read()


_starting = threading.Lock()


def fork_server() -> socket.socket:
    """Return a socket for requests to :mod:`tests.fork_server`, which ends with this process."""
    with _starting:
        return _fork_server()


@functools.cache
def _fork_server() -> socket.socket:
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server:
        process = subprocess.Popen(
            [PYTHON, "-m", "tests.fork_server", str(server.fileno())],
            cwd=ROOT,
            env={**os.environ, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            pass_fds=[server.fileno()],
            start_new_session=True,
        )

    def end() -> None:
        client.close()
        process.wait()

    atexit.register(end)
    return client


@contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    forked: bool = False,
) -> Iterator[Process]:
    """Start ``command`` and yield its process, which is always killed at the end, with its children.

    :param folder: folder for the two files with its output.
    :param env: variables to add to the environment of this process.
    :param forked: start a :class:`ForkedProgram`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out_file, err_file = folder / "stdout", folder / "stderr"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8", **(env or {})}
    with (
        sigterm_ends_pytest_in_order(),
        open(os.devnull) as nothing,
        out_file.open("wb") as out,
        err_file.open("wb") as err,
        started(command, [stream.fileno() for stream in (nothing, out, err)], cwd, environment, forked) as program,
    ):
        yield Process(program, out_file, err_file)


@contextmanager
def started(
    command: Sequence[str], streams: Sequence[int], cwd: Path, env: Mapping[str, str], forked: bool
) -> Iterator[Program]:
    """Start ``command`` in a session of its own, and kill it at the end, with its children.

    :param streams: descriptors of its input, which is its terminal if it is one, its output and errors.
    """
    terminal = os.isatty(streams[0])
    if forked and CAN_FORK:
        program = ForkedProgram(command, streams, cwd=cwd, env=env, terminal=terminal)
        try:
            yield program
        finally:
            program.close()
        return
    stdin, stdout, stderr = streams
    popen = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if terminal else None,
    )
    try:
        yield popen
    finally:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


@dataclass(frozen=True)
class Finished:
    """Result of a program."""

    returncode: int
    stdout: str
    stderr: str


def finish(
    command: Sequence[str],
    text: str = "",
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    forked: bool = False,
    patience: float = START_PATIENCE,
) -> Finished:
    """Run ``command`` to its end, with ``text``, a few lines, as its input.

    :param env: variables to add to the environment of this process.
    :param forked: start a :class:`ForkedProgram`.
    """
    with TemporaryFile() as out, TemporaryFile() as err:
        reading, writing = os.pipe()
        with open(writing, "w") as typing, open(reading) as stdin:
            typing.write(text)
            typing.close()
            streams = [stdin.fileno(), out.fileno(), err.fileno()]
            with started(command, streams, cwd, {**os.environ, **(env or {})}, forked) as program:
                code = program.wait(patience)
        for file in (out, err):
            file.seek(0)
        return Finished(code, out.read().decode(), err.read().decode())


@contextmanager
def sigterm_ends_pytest_in_order() -> Iterator[None]:
    """On SIGTERM (for example from ``timeout``), let pytest end its processes first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.exit("SIGTERM"))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def ask(url: str, body: Mapping[str, Any] | None = None, accept: str = "*/*") -> Reply:
    """Send a GET request to ``url``, or POST ``body`` as JSON. Raise OSError if the connection fails."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=START_PATIENCE)
    try:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": accept, "Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", parts.path, data, headers)
        response = connection.getresponse()
        return Reply(response.status, dict(response.headers), response.read().decode())
    finally:
        connection.close()


def ask_when_listening(process: Process, url: str, body: Mapping[str, Any] | None = None) -> Reply:
    """Return the first reply of a server that may not listen yet."""

    def reply() -> Reply | None:
        with suppress(ConnectionError):
            return ask(url, body)
        return None

    return process.wait_for(reply, f"reply from {url}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
