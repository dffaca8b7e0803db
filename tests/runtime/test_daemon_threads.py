"""Pools of daemon threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from aiochatstream.runtime.daemon_threads import DaemonExecutor, any_daemon_thread
from tests.helpers import PATIENCE

NAME = "aiochatstream-test"


def thread_count() -> int:
    return sum(thread.name.startswith(NAME) for thread in threading.enumerate())


def test_jobs_beyond_the_number_of_threads_wait() -> None:
    executor = DaemonExecutor(2, NAME)
    both, may_end = threading.Barrier(3), threading.Event()

    def job(number: int) -> int:
        if number < 2:
            both.wait(PATIENCE)
            assert may_end.wait(PATIENCE)
        return number

    futures = [executor.submit(job, number) for number in range(4)]
    both.wait(PATIENCE)
    assert not any(future.done() for future in futures)
    assert thread_count() == 2
    may_end.set()
    assert [future.result(PATIENCE) for future in futures] == [0, 1, 2, 3]
    assert any_daemon_thread()
    executor.shutdown()
    assert thread_count() == 0
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(job, 0)


def test_idle_threads_are_reused() -> None:
    executor = DaemonExecutor(8, NAME)
    for number in range(20):
        assert executor.submit(int, number).result(PATIENCE) == number
        assert executor._idle.acquire(timeout=PATIENCE)  # the thread waits for the next job
        executor._idle.release()
    assert thread_count() == 1
    executor.shutdown()


@pytest.mark.parametrize("error", [ZeroDivisionError(), SystemExit(3), GeneratorExit(), KeyboardInterrupt()])
def test_errors_of_a_job_are_raised_by_its_result_and_the_thread_continues(
    error: BaseException,
) -> None:
    executor = DaemonExecutor(1, NAME)

    def job() -> None:
        raise error

    with pytest.raises(type(error)):
        executor.submit(job).result(PATIENCE)
    assert executor.submit(int).result(PATIENCE) == 0
    executor.shutdown()


def test_shutdown_can_cancel_waiting_jobs() -> None:
    executor = DaemonExecutor(1, NAME)
    started, may_end = threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        assert may_end.wait(PATIENCE)

    running, waiting = executor.submit(job), executor.submit(int)
    assert started.wait(PATIENCE)
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        waiting.result(PATIENCE)
    may_end.set()
    running.result(PATIENCE)
    executor.shutdown()


STUCK = """
import threading
from aiochatstream.runtime.daemon_threads import DaemonExecutor
executor, started = DaemonExecutor(1, "aiochatstream-test"), threading.Event()
executor.submit(lambda: (started.set(), threading.Event().wait()))
assert started.wait()
"""


def test_a_stuck_job_does_not_delay_the_end_of_the_process() -> None:
    assert subprocess.run([sys.executable, "-c", STUCK], timeout=60, check=False).returncode == 0
