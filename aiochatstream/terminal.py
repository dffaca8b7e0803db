"""Text of others on its way to a terminal."""

from __future__ import annotations

import logging
import re
from typing import TextIO

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but new line and tab: without them no text can steer a terminal (OSC 52, CSI, C1)."""


def without_controls(text: str) -> str:
    """Return ``text`` as a terminal may get it."""
    return CONTROLS.sub("", text)


def write(text: str, file: TextIO, end: str = "\n") -> None:
    """Print ``text`` to ``file``; if that is a terminal, without control characters."""
    print(without_controls(text) if file.isatty() else text, end=end, file=file, flush=True)


class LogFormatter(logging.Formatter):
    """Formats lines that hold no control characters, wherever they go."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of ``record``."""
        return without_controls(super().format(record))
