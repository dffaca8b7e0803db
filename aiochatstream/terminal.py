"""The terminal of a command: text of others on its way to it, and Ctrl-C."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but new line and tab: without them no text can steer a terminal (OSC 52, CSI, C1)."""


def without_controls(text: str) -> str:
    """Return ``text`` as a terminal may get it."""
    return CONTROLS.sub("", text)


def write(text: str, file: TextIO, end: str = "\n") -> None:
    """Print ``text`` to ``file``; if that is a terminal, without control characters."""
    print(without_controls(text) if file.isatty() else text, end=end, file=file, flush=True)


@contextmanager
def ctrl_c_ends_at_once() -> Iterator[None]:
    """In this block, which takes its time and has nothing to clean up, Ctrl-C ends the process without a traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as shells start what they leave in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class LogFormatter(logging.Formatter):
    """Formats lines that hold no control characters, wherever they go."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of ``record``."""
        return without_controls(super().format(record))
