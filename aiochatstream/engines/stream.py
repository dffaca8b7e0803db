"""Transfer of deltas from a blocking generator in a worker thread to the event loop."""

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
    """Runs ``start()``, a blocking generator of deltas, in ``executor`` and calls ``on_delta`` on the event loop.

    The thread never waits for the loop; up to one answer is buffered.
    """

    def __init__(
        self, executor: Executor, start: Callable[[], Generator[Delta, None, None]], on_delta: Callable[[Delta], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_delta = on_delta
        self._buffer: deque[Delta] = deque()
        self._delivery_scheduled = False
        self._failure: Exception | None = None
        self._cancelled = threading.Event()
        self._abandoned = asyncio.Event()
        self._thread_result = self._loop.run_in_executor(executor, self._run, start)

    def cancel(self) -> None:
        """Stop the generator at its next step. Thread-safe, and allowed at any time."""
        self._cancelled.set()

    def abandon(self) -> bool:
        """Cancel, deliver no more deltas, and let :meth:`wait` return even if the thread is stuck in a step.

        Return True if the thread still runs.
        """
        self.cancel()
        self._abandoned.set()
        return not self._thread_result.done()

    async def wait(self) -> None:
        """Wait until all deltas are delivered and the thread has stopped, or the stream is abandoned.

        If the waiting task is cancelled, the generator is stopped first. Exceptions of the generator and of
        ``on_delta`` are raised.
        """
        abandoned = asyncio.ensure_future(self._abandoned.wait())
        ends: set[asyncio.Future[Any]] = {self._thread_result, abandoned}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.cancel()
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            raise
        finally:
            abandoned.cancel()
        if self._thread_result.done():
            self._thread_result.result()
            if self._failure is not None:
                raise self._failure

    def _run(self, start: Callable[[], Generator[Delta, None, None]]) -> None:
        try:
            self._step_through(start())
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # their local variables would keep a KV cache alive
            if isinstance(error, Exception) and not isinstance(error, StopIteration | CancelledError):
                raise
            # a future cannot store the others, or gives them another meaning
            raise RuntimeError(f"The engine raised {error!r}") from error

    def _step_through(self, steps: Generator[Delta, None, None]) -> None:
        try:
            while not self._cancelled.is_set():
                delta = next(steps, None)
                if delta is None:
                    return
                if delta != NOTHING:
                    self._buffer.append(delta)
                    if not self._delivery_scheduled:  # one call delivers all deltas that arrive before it
                        self._delivery_scheduled = True
                        self._loop.call_soon_threadsafe(self._deliver)
        finally:
            steps.close()

    def _deliver(self) -> None:
        self._delivery_scheduled = False
        try:
            for _ in range(len(self._buffer)):  # later deltas schedule another call
                delta = self._buffer.popleft()
                if self._failure is None and not self._abandoned.is_set():
                    self._on_delta(delta)
        except Exception as error:  # noqa: BLE001 - most likely an engine yielded something other than a Delta
            self._failure = error
            self.cancel()
