"""Real processes for the tests: start them, wait for what they print or answer, and always end them."""

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
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable

START_PATIENCE = 90.0
"""Seconds until a test gives up on a process that imports torch and loads a model, on a busy machine."""

END_PATIENCE = 15.0
"""Seconds until a test gives up on a process that was told to end, or was used wrongly."""


@dataclass
class Process:
    """A running program with a process group of its own. What it prints goes to files, so that it never blocks."""

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
    def told(self) -> str:
        """Everything it printed, for the message of a failed test."""
        return f"\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Poll ``condition`` until it gives something true, and return that. Fails when the process ends first."""
        deadline = time.monotonic() + START_PATIENCE
        while not (found := condition()):
            ended = self.popen.poll()
            assert ended is None, f"It ended with {ended} before {what}.{self.told}"
            assert time.monotonic() < deadline, f"No {what} in {START_PATIENCE:g} seconds.{self.told}"
            time.sleep(0.05)
        return found

    def wait_ended(self, patience: float = END_PATIENCE) -> int:
        """The exit code."""
        try:
            return self.popen.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"It did not end within {patience:g} seconds.{self.told}") from None

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal and return its exit code."""
        self.popen.send_signal(number)
        return self.wait_ended()


@contextmanager
def running(
    command: Sequence[str], folder: Path, *, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Start ``command``; kill it and its children in the end, whatever happened.

    :param folder: where the two files with its output go.
    :param env: what is added to this process's environment.
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
    """Let a pytest that is itself told to end (by ``timeout``, say) end its processes first."""
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
    """GET ``url``, or POST ``body`` to it as JSON. Raises OSError where nobody listens."""
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
    """The first reply of a server that may not listen yet."""

    def reply() -> Reply | None:
        with suppress(ConnectionError):
            return ask(url, body)
        return None

    found: Reply = process.wait_for(reply, f"reply from {url}")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
