"""The process that compiles and matches grammars, so that they cannot crash, block or exhaust the server.

Schemas of clients reach native code that recurses over them without limits of time or memory. This code never runs in
the server. The process is monitored from here, in the same way on every system.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO, Literal, cast

import psutil

from aiochatstream.constraint import JSON_OPTIONS

WORKER = Path(__file__).with_name("grammar_worker.py")

CHECK_INTERVAL = 0.02
"""Seconds between two checks of a busy process."""

MAX_WALL_SECONDS = 60.0
"""Maximum wall-clock time of a request from its start, in seconds, even on a busy machine."""


RequestName = Literal["compile", "start", "advance"]


class ProcessEnded(Exception):
    """The process crashed, or was killed because it exceeded a bound."""


class Rejected(Exception):
    """llguidance rejects a grammar; the message is its reason."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of a process.

    stack_bytes: stack of its threads. memory_bytes: resident memory.
    """

    stack_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class SerialisedTokenizer:
    """A tokenizer in llguidance's format: its JSON, or ``byte`` for a token per byte."""

    json: str = "byte"
    vocab_size: int = 0
    eos_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class _Request:
    """A request. Its deadlines are set when the process starts it."""

    name: RequestName
    reply: Future[bytes]
    cpu_seconds: float
    deadline: float = inf
    cpu_deadline: float = inf


class GrammarProcess:
    """A running ``grammar_worker.py``. Thread-safe."""

    def __init__(self, tokenizer: SerialisedTokenizer, bounds: Bounds) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this package's script
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # schemas that crash the process must not fill the log
        )
        self.pid = self._process.pid
        self._stdin, self._stdout = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        self._bounds = bounds
        self._numbers = itertools.count()
        self._requests: dict[int, _Request] = {}
        self._messages: SimpleQueue[object] = SimpleQueue()
        self._finished: SimpleQueue[int] = SimpleQueue()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._busy = threading.Event()
        self.ended = False
        setup = {
            "tokenizer": tokenizer.json,
            "vocab_size": tokenizer.vocab_size,
            "eos_ids": tokenizer.eos_ids,
            "json_options": JSON_OPTIONS,
            "stack_bytes": bounds.stack_bytes,
            "memory_bytes": 2 * bounds.memory_bytes,  # of address space, in case the monitor is late
        }
        self._messages.put(setup)
        for function in (self._send, self._receive, self._monitor):
            threading.Thread(target=function, name="aiochatstream-grammars", daemon=True).start()

    def request(self, name: RequestName, *arguments: object, cpu_seconds: float) -> Future[bytes]:
        """Send a request without waiting, and return the future of its reply; it raises Rejected or ProcessEnded.

        :param cpu_seconds: maximum processor time, counted from the start of the request in the process.
        """
        number = next(self._numbers) % 2**32
        request = _Request(name, Future(), cpu_seconds)
        with self._lock:
            if self.ended:
                request.reply.set_exception(ProcessEnded())
                return request.reply
            self._requests[number] = request
        self._busy.set()
        finished = []
        with suppress(Empty):
            while True:
                finished.append(self._finished.get_nowait())
        self._messages.put([number, finished, name, *arguments])
        return request.reply

    def finish(self, answer: int) -> None:
        """Drop the state of an answer, with the next request. Can be called in a finalizer."""
        self._finished.put(answer)

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()

    def _send(self) -> None:
        """Write messages until None. A process that starts or is busy may read them late."""
        while (message := self._messages.get()) is not None:
            body = json.dumps(message).encode()
            with self._writing, suppress(OSError, ValueError):  # the process has ended; _receive handles that
                self._stdin.write(len(body).to_bytes(4) + body)
                self._stdin.flush()

    def _receive(self) -> None:
        while reply := _read(self._stdout):
            with self._lock:
                request = self._requests.pop(int.from_bytes(reply[:4]))
            if reply[4:5] == b"+":
                request.reply.set_result(reply[5:])
            else:
                request.reply.set_exception(Rejected(reply[5:].decode()))
        self._process.kill()
        self._messages.put(None)
        with self._writing, suppress(OSError), self._process:  # close the pipes and wait
            pass
        with self._lock:
            self.ended = True
            pending = list(self._requests.values())
            self._requests.clear()
        self._busy.set()
        for request in pending:
            request.reply.set_exception(ProcessEnded())

    def _monitor(self) -> None:
        try:
            process = psutil.Process(self.pid)
            while not self.ended:
                self._busy.wait()
                self._busy.clear()
                while self._requests:
                    if self._exceeds(process):
                        return
                    time.sleep(CHECK_INTERVAL)
        except psutil.Error:  # the process has ended
            pass
        finally:
            self._process.kill()  # never runs without a monitor

    def _exceeds(self, process: psutil.Process) -> bool:
        """Return True if a bound is exceeded."""
        now, times = time.monotonic(), process.cpu_times()
        cpu = times.user + times.system
        with self._lock:
            compiling = [request for request in self._requests.values() if request.name == "compile"]
            others = [request for request in self._requests.values() if request.name != "compile"]
        for request in (*compiling[:1], *others[:1]):  # the process handles each kind in order, in a separate thread
            if request.deadline == inf:
                request.deadline, request.cpu_deadline = now + MAX_WALL_SECONDS, cpu + request.cpu_seconds
            if now > request.deadline or cpu > request.cpu_deadline:
                return True
        return bool(process.memory_info().rss > self._bounds.memory_bytes)


def _read(stream: BinaryIO) -> bytes:
    """Return the next message; empty at the end of the stream, even within a message."""
    length = int.from_bytes(stream.read(4))
    message = stream.read(length)
    return message if len(message) == length else b""
