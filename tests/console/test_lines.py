"""Ctrl-C in the console."""

from __future__ import annotations

import asyncio
import signal

import pytest

from aiochatstream.console.lines import on_sigint

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


@pytest.mark.parametrize("windows", [False, True])
async def test_on_sigint_works_on_loops_with_and_without_signal_handlers(
    monkeypatch: pytest.MonkeyPatch, windows: bool
) -> None:
    loop, called = asyncio.get_running_loop(), asyncio.Event()
    if windows:

        def not_implemented(*args: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(loop, "add_signal_handler", not_implemented)
        monkeypatch.setattr(loop, "remove_signal_handler", not_implemented)
    before = signal.getsignal(signal.SIGINT)
    with on_sigint(called.set):
        signal.raise_signal(signal.SIGINT)
        await asyncio.wait_for(called.wait(), 20)
    assert signal.getsignal(signal.SIGINT) == before
