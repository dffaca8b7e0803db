"""The C++ compiler of the machine, for code that is compiled at its first use for the CPU it runs on."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import CDLL
from pathlib import Path

FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"]
"""Sums may be reordered; NaN stays NaN."""


def compile_library(source: Path, macros: Sequence[str] = ()) -> CDLL:
    """Compile ``source`` and load it. Its OpenMP threads are those of torch.

    Raise OSError if the compiler is missing or fails.

    :param macros: options of the compiler, for example ``-DSIZE=64``.
    """
    compiler = os.environ.get("CXX") or "g++"
    with tempfile.TemporaryDirectory() as scratch:
        object_file, library = str(Path(scratch) / "code.o"), str(Path(scratch) / "code.so")
        # linked separately, so that torch's OpenMP library is not loaded twice
        for command in (
            [compiler, *FLAGS, *macros, "-fopenmp", "-fPIC", "-c", str(source), "-o", object_file],
            [compiler, "-shared", object_file, "-o", library],
        ):
            result = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
            if result.returncode:
                raise OSError(result.stderr.strip().partition("\n")[0] or f"{compiler} failed")
        return CDLL(library)
