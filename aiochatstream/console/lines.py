"""Input of the console: lines from a terminal or a pipe."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from prompt_toolkit import PromptSession
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from aiochatstream.console.console import Console
from aiochatstream.runtime.daemon_threads import in_daemon_thread


async def read_terminal(console: Console) -> None:
    """Read lines from the terminal until Ctrl-D, a second Ctrl-C in a row, or /exit."""
    session: PromptSession[str] = PromptSession(
        multiline=True, key_bindings=_keys(), prompt_continuation=lambda width, line, wrapped: "." * (width - 1) + " "
    )
    interrupted = False
    while not console.leaving:
        try:
            line = await session.prompt_async("> ", default=console.draft)
        except EOFError:
            return
        except KeyboardInterrupt:
            if interrupted and not session.default_buffer.text:
                return
            interrupted, console.draft = True, ""
            console.screen.note(console.texts.leaving)
            continue
        interrupted = False
        with on_sigint(console.interrupt):
            await console.handle(line)


async def read_pipe(console: Console) -> None:
    """Read one message per line until the end of stdin or /exit."""
    while not console.leaving and (line := await in_daemon_thread(sys.stdin.readline)):
        await console.handle(line)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def insert_newline(event: KeyPressEvent) -> None:
        event.current_buffer.newline()

    return keys


@contextmanager
def on_sigint(call: Callable[[], object]) -> Iterator[None]:
    """Call ``call`` on the event loop at Ctrl-C, instead of the default action.

    The handler is the loop's own: others do not wake a loop that is about to sleep.
    """
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # as in background jobs of shells
        yield
        return
    try:
        loop.add_signal_handler(signal.SIGINT, call)
    except NotImplementedError:  # on Windows, where any signal wakes the loop
        signal.signal(signal.SIGINT, lambda number, frame: loop.call_soon_threadsafe(call))
    try:
        yield
    finally:
        with suppress(NotImplementedError):
            loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
