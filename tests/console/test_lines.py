"""Ctrl-C while a line is at work."""

from __future__ import annotations

import asyncio
import signal

import pytest

from aiochatstream.console.lines import on_sigint

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


@pytest.mark.parametrize("windows", [False, True])
async def test_ctrl_c_calls_on_the_loop_where_it_has_handlers_and_where_it_has_none(
    monkeypatch: pytest.MonkeyPatch, windows: bool
) -> None:
    loop, called = asyncio.get_running_loop(), asyncio.Event()
    if windows:

        def has_none(*args: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(loop, "add_signal_handler", has_none)
        monkeypatch.setattr(loop, "remove_signal_handler", has_none)
    before = signal.getsignal(signal.SIGINT)
    with on_sigint(called.set):
        signal.raise_signal(signal.SIGINT)
        await asyncio.wait_for(called.wait(), 20)
    assert signal.getsignal(signal.SIGINT) == before
