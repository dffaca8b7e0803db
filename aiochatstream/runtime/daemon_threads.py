"""Daemon threads, for calls that may take minutes or never return. They do not delay the end of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar, cast

Result = TypeVar("Result")

THREAD = "aiochatstream-daemon"

Job = tuple[Future[Any], Callable[[], Any]]


class DaemonExecutor(Executor):
    """A pool of daemon threads. (The interpreter joins the threads of concurrent.futures at its end, even stuck ones.)

    :param count: maximum number of threads; each is started when it is needed.
    :param name: prefix of their names.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._lock = threading.Lock()

    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        future: Future[Result] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("The executor is shut down.")
            self._jobs.put((future, partial(function, *args, **kwargs)))
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._count:
                name = f"{self._name}_{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._closed = True
            while cancel_futures and not self._jobs.empty():
                job = self._jobs.get()
                if job is not None:
                    job[0].cancel()
            for _ in self._threads:
                self._jobs.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            _run(*job)
            del job  # its arguments may be large
            self._idle.release()


def _run(future: Future[Any], function: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - raised to the caller that awaits the result
            future.set_exception(error)
        else:
            future.set_result(result)


async def in_daemon_thread(function: Callable[[], Result]) -> Result:
    """Run ``function`` in a daemon thread and return its result."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def set_result(result: Result | None, error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(cast(Result, result))

    def run() -> None:
        result: Result | None = None
        error: BaseException | None = None
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001 - raised to the caller
            error = raised
            if not isinstance(raised, Exception) or isinstance(raised, StopIteration):  # a future cannot hold these
                error = RuntimeError(f"Loading raised {raised!r}")
        with suppress(RuntimeError):  # the loop may be closed
            loop.call_soon_threadsafe(set_result, result, error)

    threading.Thread(target=run, name=THREAD, daemon=True).start()
    return await done


def any_daemon_thread() -> bool:
    """Return True if a daemon thread of this package is running.

    torch, or the interpreter when it closes stdin, may then abort at the end of the process.
    """
    return any(thread.daemon and thread.name.startswith("aiochatstream-") for thread in threading.enumerate())
