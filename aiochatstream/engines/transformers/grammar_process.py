"""The process in which grammars are compiled and followed. It may crash, hang or use up memory; the server may not.

A schema from a client reaches native code that recurses over it, without limits of time or memory of its own. So none
of that code runs in the server. The process is watched from here, in the same way on every system.
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

WATCH_SECONDS = 0.02
"""Seconds between two looks at a process that works."""

PATIENCE = 60.0
"""Seconds of wall-clock time that a request may take once it has begun, however busy the machine is."""


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
class Tokenizer:
    """A tokenizer as llguidance reads it: its JSON, or ``byte`` for a token per byte."""

    json: str = "byte"
    vocabulary: int = 0
    eos_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class _Request:
    """A request. Its deadlines are set when the process begins it."""

    name: RequestName
    reply: Future[bytes]
    cpu_seconds: float
    deadline: float = inf
    cpu_deadline: float = inf


class GrammarProcess:
    """A running ``grammar_worker.py``. Its methods can be called in any thread."""

    def __init__(self, tokenizer: Tokenizer, bounds: Bounds) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a schema that crashes the process is to fill no log
        )
        self._stdin, self._stdout = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        self._bounds = bounds
        self._numbers = itertools.count()
        self._requests: dict[int, _Request] = {}
        self._finished: SimpleQueue[int] = SimpleQueue()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._working = threading.Event()
        self.ended = False
        setup = {
            "tokenizer": tokenizer.json,
            "vocabulary": tokenizer.vocabulary,
            "eos_ids": tokenizer.eos_ids,
            "json_options": JSON_OPTIONS,
            "stack_bytes": bounds.stack_bytes,
            "memory_bytes": 2 * bounds.memory_bytes,  # of address space, in case that the watch is late
        }
        for function in (self._receive, self._watch):
            threading.Thread(target=function, name="aiochatstream-grammars", daemon=True).start()
        self._write(setup)

    def request(self, name: RequestName, *arguments: object, cpu_seconds: float) -> Future[bytes]:
        """Send a request and return its future reply: Rejected, or ProcessEnded if the process ends before.

        :param cpu_seconds: processor time that it may take, without the time until the process begins it.
        """
        number = next(self._numbers) % 2**32
        request = _Request(name, Future(), cpu_seconds)
        with self._lock:
            if self.ended:
                request.reply.set_exception(ProcessEnded())
                return request.reply
            self._requests[number] = request
        self._working.set()
        finished = []
        with suppress(Empty):
            while True:
                finished.append(self._finished.get_nowait())
        self._write([number, finished, name, *arguments])
        return request.reply

    def finish(self, answer: int) -> None:
        """Drop the state of an answer, with the next request. Safe in a finalizer."""
        self._finished.put(answer)

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()

    def _write(self, message: object) -> None:
        body = json.dumps(message).encode()
        with self._writing, suppress(OSError, ValueError):  # after the end of the process, which _receive notices
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
        with self._writing, suppress(OSError), self._process:  # close the pipes and wait
            pass
        with self._lock:
            self.ended = True
            left = list(self._requests.values())
            self._requests.clear()
        self._working.set()
        for request in left:
            request.reply.set_exception(ProcessEnded())

    def _watch(self) -> None:
        try:
            process = psutil.Process(self._process.pid)
            while not self.ended:
                self._working.wait()
                self._working.clear()
                while self._requests:
                    if self._exceeds(process):
                        return
                    time.sleep(WATCH_SECONDS)
        except psutil.Error:  # it has ended
            pass
        finally:
            self._process.kill()  # it does not run unwatched

    def _exceeds(self, process: psutil.Process) -> bool:
        """Return whether a bound is exceeded."""
        now, times = time.monotonic(), process.cpu_times()
        cpu = times.user + times.system
        with self._lock:
            compiling = [request for request in self._requests.values() if request.name == "compile"]
            others = [request for request in self._requests.values() if request.name != "compile"]
        for request in (*compiling[:1], *others[:1]):  # the process begins them in turn, in a thread of each kind
            if request.deadline == inf:
                request.deadline, request.cpu_deadline = now + PATIENCE, cpu + request.cpu_seconds
            if now > request.deadline or cpu > request.cpu_deadline:
                return True
        return bool(process.memory_info().rss > self._bounds.memory_bytes)


def _read(stream: BinaryIO) -> bytes:
    """Return the next message; empty at the end of the stream, even if that cuts a message off."""
    length = int.from_bytes(stream.read(4))
    message = stream.read(length)
    return message if len(message) == length else b""
