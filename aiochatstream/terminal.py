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
"""Control characters except newline and tab. They begin the sequences that control a terminal (OSC 52, CSI, C1)."""


def without_controls(text: str) -> str:
    """Return ``text`` without control characters."""
    return CONTROLS.sub("", text)


def write(text: str, file: TextIO, end: str = "\n") -> None:
    """Print ``text`` to ``file``, without control characters if it is a terminal."""
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
def default_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process without a traceback, during slow code that needs no cleanup."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as in background jobs of shells
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class LogFormatter(logging.Formatter):
    """Formatter that removes control characters from log lines."""

    def format(self, record: logging.LogRecord) -> str:
        return without_controls(super().format(record))
