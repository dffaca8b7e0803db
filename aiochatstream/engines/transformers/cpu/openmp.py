"""torch's threads on a CPU: OpenMP's."""

from __future__ import annotations

import ctypes
from contextlib import suppress

PAUSE_SOFT = 1


def release_helpers() -> None:
    """End the idle helpers of the calling thread; they come back when it computes again.

    Each thread that computes has helpers of its own. Where there are more of all together than cores, those that wait
    for their next piece of work go to sleep at once, and waking them takes longer than most pieces do: every step of
    the decode thread is slower if another thread has ever used the model.
    """
    with suppress(OSError, AttributeError, TypeError):  # another OpenMP than GNU's or LLVM's, or none
        ctypes.CDLL(None).omp_pause_resource_all(PAUSE_SOFT)
