"""The C++ compiler of the machine, for code that is compiled for the CPU it runs on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path

from platformdirs import user_cache_path

from aiochatstream.engines.transformers.cpu.processor import describe_processor

FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"]
"""Sums may be reordered; NaN stays NaN."""


def compile_library(source: Path, macros: Sequence[str] = ()) -> CDLL:
    """Return the library of ``source``, compiled once, into the user's cache folder. Its OpenMP threads are torch's.

    Raise OSError if the compiler is missing or fails.

    :param macros: options of the compiler, for example ``-DSIZE=64``.
    """
    command = [os.environ.get("CXX") or "g++", *FLAGS, *macros]
    texts = [file.read_text() for file in (source, *sorted(source.parent.glob("*.h")))]
    key = json.dumps([command, texts, describe_processor()])
    file = user_cache_path("aiochatstream") / "code" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.so"
    with suppress(OSError):  # not compiled yet, or damaged
        return CDLL(str(file))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=file.parent)
    except OSError:  # there is no cache folder
        scratch = tempfile.TemporaryDirectory()
        file = Path(scratch.name) / "library.so"
    with scratch:
        compiled = _compile(command, source, Path(scratch.name))
        compiled.replace(file)
        return CDLL(str(file))


def _compile(command: Sequence[str], source: Path, folder: Path) -> Path:
    object_file, library = folder / "code.o", folder / "code.so"
    # linked separately, so that torch's OpenMP library is not loaded twice
    for step in (
        [*command, "-fopenmp", "-fPIC", "-c", str(source), "-o", str(object_file)],
        [command[0], "-shared", str(object_file), "-o", str(library)],
    ):
        result = subprocess.run(step, capture_output=True, text=True)  # noqa: S603
        if result.returncode:
            lines = result.stderr.strip().splitlines() or [f"{command[0]} failed"]
            raise OSError(next((line for line in lines if " error: " in line), lines[0]))
    return library
