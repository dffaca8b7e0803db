"""Time for the tests of waits: nobody looks at a real clock."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from aiochatstream.engines.timer import Timer


@dataclass
class VirtualTimer(Timer):
    """Sleeping takes no time, and afterwards it is later."""

    time: float = 1000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class HeldTimer(VirtualTimer):
    """A sleep ends when the test allows it."""

    sleeps: int = 0
    _permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        self._permits.acquire()
        super().sleep(seconds)

    def allow(self, sleeps: int) -> None:
        self._permits.release(sleeps)
