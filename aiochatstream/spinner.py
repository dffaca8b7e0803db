"""A line with a spinner in the terminal, drawn by rich."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def can_show() -> bool:
    """Return whether stderr is a terminal that can redraw a line."""
    return Console(file=sys.stderr).is_interactive


@contextmanager
def spinner(name: str) -> Iterator[None]:
    """Show ``name`` and the elapsed time on stderr, until the block ends or anything else is written."""
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=_Console(file=sys.stderr),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    progress.add_task(name, total=None)
    out, err = sys.stdout, sys.stderr
    replacement: Any = _WriteHook(err, progress.stop)
    handlers = [
        handler
        for handler in logging.root.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is err
    ]
    sys.stdout, sys.stderr = _WriteHook(out, progress.stop), replacement
    for handler in handlers:
        handler.setStream(replacement)
    progress.start()
    try:
        yield
    finally:
        progress.stop()
        sys.stdout, sys.stderr = out, err
        for handler in handlers:
            handler.setStream(err)


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        return False  # a hidden cursor would stay hidden if the process is killed


class _WriteHook:
    """A stream that calls ``hook`` before each write; later calls of Progress.stop have no effect."""

    def __init__(self, stream: TextIO, hook: Callable[[], None]) -> None:
        self._stream, self._hook = stream, hook

    def write(self, text: str) -> int:
        self._hook()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
