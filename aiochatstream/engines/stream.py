"""The running generation of an answer: a blocking generator in a worker thread, or an asynchronous one in a task."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import CancelledError, Executor
from contextlib import aclosing
from typing import Any, Protocol

from aiochatstream.engines.base import Delta

NOTHING = Delta()

OnDelta = Callable[[Delta], None]
"""Function that receives each delta of an answer, on the event loop."""


class AnswerStream(Protocol):
    """The running generation of an answer."""

    def cancel(self) -> None:
        """Stop the generation. Allowed at any time."""

    def abandon(self) -> bool:
        """Cancel, deliver no more deltas, and let :meth:`wait` return. Return True if the generation still runs."""

    async def wait(self) -> None:
        """Wait until all deltas are delivered and the generation has stopped, or is abandoned.

        If the waiting task is cancelled, the generation is stopped first. Exceptions of the engine and of the receiver
        of the deltas are raised.
        """


class DeltaStream:
    """Runs ``start()``, a blocking generator of deltas, in ``executor`` and calls ``on_delta`` on the event loop.

    The thread never waits for the loop; up to one answer is buffered.
    """

    def __init__(
        self, executor: Executor, start: Callable[[], Generator[Delta, None, None]], on_delta: OnDelta
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


class AsyncDeltaStream:
    """Iterates ``start()``, an asynchronous generator of deltas, in a task and calls ``on_delta`` with each delta."""

    def __init__(self, start: Callable[[], AsyncGenerator[Delta, None]], on_delta: OnDelta) -> None:
        self._on_delta = on_delta
        self._cancelled = self._abandoned = False
        self._end = asyncio.Event()
        self._task = asyncio.create_task(self._run(start))
        self._task.add_done_callback(lambda _: self._end.set())

    def cancel(self) -> None:
        """Stop the generator at its current ``await``. Allowed at any time."""
        if not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def abandon(self) -> bool:
        """Cancel, deliver no more deltas, and let :meth:`wait` return even if the generator ignores the cancellation.

        Return True if the generator still runs.
        """
        self.cancel()
        self._abandoned = True
        self._end.set()
        return not self._task.done()

    async def wait(self) -> None:
        """Wait until all deltas are delivered and the generator has stopped, or the stream is abandoned.

        If the waiting task is cancelled, the generator is stopped first. Exceptions of the generator and of
        ``on_delta`` are raised.
        """
        try:
            await self._end.wait()
        except asyncio.CancelledError:
            self.cancel()
            await self._end.wait()
            raise
        if not self._task.done():
            return
        try:
            self._task.result()
        except asyncio.CancelledError:
            if not self._cancelled:  # the generator raised it
                raise RuntimeError("The engine raised CancelledError.") from None

    async def _run(self, start: Callable[[], AsyncGenerator[Delta, None]]) -> None:
        async with aclosing(start()) as deltas:
            async for delta in deltas:
                if self._cancelled:
                    return
                self._on_delta(delta)
