"""Terminal output of the commands: text from other programs, errors in a few words, and Ctrl-C."""

from __future__ import annotations

import logging
import os
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


def one_line(text: str, max_length: int = 200) -> str:
    """Return ``text`` on one line, truncated to ``max_length`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= max_length else line[: max_length - 3] + "..."


def os_error_reason(error: OSError) -> str:
    """Return the operating system's description of ``error``, without addresses."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else str(error.strerror or error)  # getaddrinfo's numbers are negative


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
