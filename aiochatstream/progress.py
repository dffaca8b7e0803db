"""Progress display while a model loads."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class LoadTime(Generic[Result]):
    """Progress display for a slow function::

        model = LoadTime(name="Loading the model", fn=lambda: AutoModelForCausalLM.from_pretrained(name))()

    In a terminal, and with rich installed, stderr shows a line with a spinner until anything else is written, for
    example a progress bar of the function. Otherwise the log gets a line before and a line after.

    :param name: text to show.
    :param fn: function without parameters, whose result the call returns.
    """

    def __init__(self, *, name: str, fn: Callable[[], Result]) -> None:
        self._name, self._fn = name, fn

    def __call__(self) -> Result:
        with show_progress(self._name):
            return self._fn()


@contextmanager
def show_progress(name: str) -> Iterator[None]:
    """Show progress as :class:`LoadTime`, during a block."""
    console = _terminal()
    if console is not None:
        with _spinner(name, console):
            yield
    else:
        started = time.perf_counter()
        logger.info("%s ...", name)
        yield
        logger.info("%s: %.1f s", name, time.perf_counter() - started)


def _terminal() -> Console | None:
    """Return rich's console for stderr; None if rich is not installed or stderr cannot redraw a line."""
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None

    class ConsoleWithCursor(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False  # a hidden cursor would stay hidden if the process is killed

    console = ConsoleWithCursor(file=sys.stderr)
    return console if console.is_interactive else None


class _WriteHook:
    """A stream that calls ``hook`` before each write; later calls of Progress.stop have no effect."""

    def __init__(self, stream: TextIO, hook: Callable[[], None]) -> None:
        self._stream, self._hook = stream, hook

    def write(self, text: str) -> int:
        self._hook()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _spinner(name: str, console: Console) -> Iterator[None]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

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
