"""Progress display while a model loads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Generic, TypeVar

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
    if find_spec("rich") is not None:
        from aiochatstream import spinner  # here, so that importing the package is light

        if spinner.can_show():
            with spinner.spinner(name):
                yield
            return
    started = time.perf_counter()
    logger.info("%s ...", name)
    yield
    logger.info("%s: %.1f s", name, time.perf_counter() - started)
