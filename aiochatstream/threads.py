"""A thread for what takes minutes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

LOADING_THREAD = "aiochatstream-load"


async def in_daemon_thread(function: Callable[[], None]) -> None:
    """Run ``function`` in a thread that does not keep the process from ending: loading a model can take minutes."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            function()
        except BaseException as raised:  # noqa: BLE001 - it is told where it is awaited
            error = raised
            if not isinstance(raised, Exception) or isinstance(raised, StopIteration):  # which a future cannot hold
                error = RuntimeError(f"Loading raised {raised!r}")
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=run, name=LOADING_THREAD, daemon=True).start()
    await done
