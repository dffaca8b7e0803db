"""The helpers of a thread can end, and come back."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest
import torch

from aiochatstream.engines.transformers.cpu.openmp import release_idle_threads


def threads() -> int:
    return len([*Path("/proc/self/task").iterdir()])


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc, which is Linux's")
def test_helpers_end_and_come_back_when_there_is_work() -> None:
    counted: list[int] = []

    numbers = torch.ones(2_000_000)

    def work() -> None:
        torch.set_num_threads(2)
        for _ in range(2):
            counted.append(threads())
            numbers.exp().sum()
            counted.append(threads())
            release_idle_threads()
        counted.append(threads())
        assert float(numbers.sum()) == 2_000_000

    usual = torch.get_num_threads()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.set_num_threads(usual)
    before, first, between, second, after = counted
    assert first == second == before + 1
    assert between == after == before


def test_where_there_is_no_such_openmp_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    release_idle_threads()
