"""From a blocking generator in a worker thread to the event loop."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Executor
from typing import Any

from aiochatstream.engines.base import Delta

NOTHING = Delta()


class DeltaStream:
    """Runs ``start()`` (a blocking generator of deltas) in ``executor`` and calls ``take(delta)`` on the event loop.

    The thread never waits for the loop: what is not yet taken is buffered, at most one answer. :meth:`cancel` stops the
    generator at its next step. :meth:`wait` returns, or raises what the generator raised, when all deltas were taken
    and the thread has really stopped, or the stream was abandoned.
    """

    def __init__(
        self, executor: Executor, start: Callable[[], Generator[Delta, None, None]], take: Callable[[Delta], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._buffer: deque[Delta] = deque()
        self._due = False
        self._failure: Exception | None = None
        self._cancelled = threading.Event()
        self._abandoned = asyncio.Event()
        self._work = self._loop.run_in_executor(executor, self._run, start)

    def cancel(self) -> None:
        """Stop within one step. Safe at any time and from any thread."""
        self._cancelled.set()

    def abandon(self) -> bool:
        """Let :meth:`wait` return even if the thread is stuck in a step; return whether it still runs.

        Nothing more is taken.
        """
        self.cancel()
        self._abandoned.set()
        return not self._work.done()

    async def wait(self) -> None:
        """Return when the thread has really stopped; cancelled, stop it first.

        Raises what the generator raised, or ``take``.
        """
        abandoned = asyncio.ensure_future(self._abandoned.wait())
        ends: set[asyncio.Future[Any]] = {self._work, abandoned}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.cancel()
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            raise
        finally:
            abandoned.cancel()
        if self._work.done():
            self._work.result()
            if self._failure is not None:
                raise self._failure

    def _run(self, start: Callable[[], Generator[Delta, None, None]]) -> None:
        try:
            self._step_through(start())
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # their variables would keep a KV cache alive
            if isinstance(error, Exception) and not isinstance(error, StopIteration | CancelledError):
                raise
            raise RuntimeError(f"The engine raised {error!r}") from error  # a future cannot hold it, or means another

    def _step_through(self, steps: Generator[Delta, None, None]) -> None:
        try:
            while not self._cancelled.is_set():
                delta = next(steps, None)
                if delta is None:
                    return
                if delta != NOTHING:
                    self._buffer.append(delta)
                    if not self._due:  # one call for all that come before the loop gets to it
                        self._due = True
                        self._loop.call_soon_threadsafe(self._hand_over)
        finally:
            steps.close()

    def _hand_over(self) -> None:
        self._due = False
        try:
            for _ in range(len(self._buffer)):  # what comes meanwhile has a call of its own
                delta = self._buffer.popleft()
                if self._failure is None and not self._abandoned.is_set():
                    self._take(delta)
        except Exception as error:  # noqa: BLE001 - a delta that is none, most likely
            self._failure = error
            self.cancel()
