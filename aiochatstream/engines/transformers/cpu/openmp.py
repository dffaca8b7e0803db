"""The OpenMP threads of torch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PAUSE_SOFT = 1


def release_idle_threads() -> None:
    """End the idle OpenMP threads of the calling thread. They are created again when it computes.

    Each computing thread has its own OpenMP threads. If there are more of them in total than cores, waiting ones
    sleep immediately instead of spinning, and waking them takes longer than most operations: every step of the decode
    thread would be slower after another thread has used the model.
    """
    with suppress(OSError, AttributeError, TypeError):  # an OpenMP other than GNU's or LLVM's, or none
        ctypes.CDLL(None).omp_pause_resource_all(PAUSE_SOFT)


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute without OpenMP threads in the calling thread. Other threads are not affected."""
    threads = 0
    with suppress(OSError, AttributeError, TypeError):
        threads = ctypes.CDLL(None).omp_get_max_threads()
        ctypes.CDLL(None).omp_set_num_threads(1)
    try:
        yield
    finally:
        if threads:
            ctypes.CDLL(None).omp_set_num_threads(threads)
