"""Threads for what may take minutes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

Result = TypeVar("Result")

THREAD = "aiochatstream-daemon"


async def in_daemon_thread(function: Callable[[], Result]) -> Result:
    """Run ``function`` in a thread that does not keep the process from ending: loading a model can take minutes, and
    a person may never type a line.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def tell(result: Result | None, error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(cast(Result, result))

    def run() -> None:
        result: Result | None = None
        error: BaseException | None = None
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001 - it is told where it is awaited
            error = raised
            if not isinstance(raised, Exception) or isinstance(raised, StopIteration):  # which a future cannot hold
                error = RuntimeError(f"Loading raised {raised!r}")
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name=THREAD, daemon=True).start()
    return await done


def any_daemon_thread() -> bool:
    """Whether a function of :func:`in_daemon_thread` still runs. torch aborts when the interpreter ends under it, and
    the interpreter when it cannot close stdin.
    """
    return any(thread.name == THREAD for thread in threading.enumerate())
