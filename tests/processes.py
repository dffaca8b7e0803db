"""Processes of the tests: starting them, waiting for their output or replies, and always ending them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable

START_PATIENCE = 90.0
"""Seconds to wait for a process that imports torch and loads a model, on a busy machine."""

END_PATIENCE = 15.0
"""Seconds to wait for a process to end after a signal or a usage error."""


@dataclass
class Process:
    """A running program in a process group of its own. Its output is written to files, so that it never blocks."""

    popen: subprocess.Popen[bytes]
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


@contextmanager
def running(
    command: Sequence[str], folder: Path, *, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Start ``command`` and yield its process, which is always killed at the end, with its children.

    :param folder: folder for the two files with its output.
    :param env: variables to add to the environment of this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out_file, err_file = folder / "stdout", folder / "stderr"
    with sigterm_ends_pytest_in_order():
        yield from _running(command, out_file, err_file, cwd, env)


def _running(
    command: Sequence[str], out_file: Path, err_file: Path, cwd: Path, env: Mapping[str, str] | None
) -> Iterator[Process]:
    with out_file.open("wb") as out, err_file.open("wb") as err:
        popen = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    try:
        yield Process(popen, out_file, err_file)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


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
    """Send a GET request to ``url``, or POST ``body`` as JSON. Raises OSError if the connection fails."""
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
