"""Timers that tests control."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from aiochatstream.engines.timer import Timer


@dataclass
class VirtualTimer(Timer):
    """A clock that sleeping advances immediately."""

    time: float = 1000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class ManualTimer(VirtualTimer):
    """A clock whose sleeps end when the test allows it."""

    sleeps: int = 0
    _permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        self._permits.acquire()
        super().sleep(seconds)

    def allow(self, sleeps: int) -> None:
        self._permits.release(sleeps)
