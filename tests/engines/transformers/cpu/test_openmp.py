"""Tests of the release of OpenMP threads."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest
import torch

from aiochatstream.engines.transformers.cpu.openmp import release_idle_threads


def threads() -> int:
    return len([*Path("/proc/self/task").iterdir()])


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="requires /proc of Linux")
def test_idle_threads_end_and_are_created_again_for_work() -> None:
    counts: list[int] = []

    numbers = torch.ones(2_000_000)

    def work() -> None:
        torch.set_num_threads(2)
        for _ in range(2):
            counts.append(threads())
            numbers.exp().sum()
            counts.append(threads())
            release_idle_threads()
        counts.append(threads())
        assert float(numbers.sum()) == 2_000_000

    usual = torch.get_num_threads()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.set_num_threads(usual)
    before, first, between, second, after = counts
    assert first == second == before + 1
    assert between == after == before


def test_other_openmp_libraries_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    release_idle_threads()
