"""A sign of life while something loads."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TextIO, TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class LoadTime(Generic[Result]):
    """Calls a slow function and shows meanwhile that it runs, and for how long::

        model = LoadTime(name="Loading the model", fn=lambda: AutoModelForCausalLM.from_pretrained(name))()

    In a terminal, a line with a spinner stands on stderr; it goes as soon as anything else is written, such as a
    progress bar of the function's own. Elsewhere, the log gets a line before and a line after.

    :param name: what to show.
    :param fn: takes nothing. The call returns what it returns, and raises what it raises.
    """

    def __init__(self, *, name: str, fn: Callable[[], Result]) -> None:
        self._name, self._fn = name, fn

    def __call__(self) -> Result:
        with showing_progress(self._name):
            return self._fn()


@contextmanager
def showing_progress(name: str) -> Iterator[None]:
    """What :class:`LoadTime` shows, around any block."""
    console = _Console(file=sys.stderr)
    if console.is_interactive:
        with _spinner(name, console):
            yield
    else:
        started = time.perf_counter()
        logger.info("%s ...", name)
        yield
        logger.info("%s: %.1f s", name, time.perf_counter() - started)


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        return False  # hidden, it would stay so where the process is ended


class _Stepping:
    """A stream whose first write calls ``aside``."""

    def __init__(self, stream: TextIO, aside: Callable[[], None]) -> None:
        self._stream, self._aside = stream, aside

    def write(self, text: str) -> int:
        self._aside()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _spinner(name: str, console: Console) -> Iterator[None]:
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    progress.add_task(name, total=None)
    out, err = sys.stdout, sys.stderr
    stepping: Any = _Stepping(err, progress.stop)
    loggers = [
        handler
        for handler in logging.root.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is err
    ]
    sys.stdout, sys.stderr = _Stepping(out, progress.stop), stepping
    for handler in loggers:
        handler.setStream(stepping)
    progress.start()
    try:
        yield
    finally:
        progress.stop()
        sys.stdout, sys.stderr = out, err
        for handler in loggers:
            handler.setStream(err)
