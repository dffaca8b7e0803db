"""From a blocking generator in a worker thread to an async iterator on the event loop."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Executor

from aiochatstream.engines.base import Delta


class DeltaStream:
    """Runs ``start()`` (a blocking generator of deltas) in ``executor`` and hands its deltas over.

    An async iterator. The thread never waits for its reader: what is not yet read is buffered, at most one answer.
    :meth:`cancel` stops the generator at its next step. The iterator ends, or raises what the generator raised, only
    after the thread has really stopped.
    """

    def __init__(self, executor: Executor, start: Callable[[], Generator[Delta, None, None]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer: deque[Delta] = deque()
        self._readable = asyncio.Event()
        self._cancelled = threading.Event()
        self._work = self._loop.run_in_executor(executor, self._run, start)
        self._work.add_done_callback(lambda _: self._readable.set())

    def __aiter__(self) -> DeltaStream:
        return self

    async def __anext__(self) -> Delta:
        while not self._buffer:
            if self._work.done():
                self._work.result()
                raise StopAsyncIteration
            self._readable.clear()
            await self._readable.wait()
        return self._buffer.popleft()

    def cancel(self) -> None:
        """Stop within one step. Safe at any time and from any thread."""
        self._cancelled.set()

    async def aclose(self) -> None:
        """Cancel, and return when the thread has really stopped."""
        self.cancel()
        await asyncio.wait({self._work})

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
                if delta != Delta():
                    self._loop.call_soon_threadsafe(self._hand_over, delta)
        finally:
            steps.close()

    def _hand_over(self, delta: Delta) -> None:
        self._buffer.append(delta)
        self._readable.set()
