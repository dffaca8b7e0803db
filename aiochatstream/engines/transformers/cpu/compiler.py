"""The C++ compiler of the machine, for code that is compiled for the CPU it runs on."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
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

    If other users can write to the cache folder, or it cannot be used, the code is compiled for this process only.

    Raise OSError if the compiler is missing or fails.

    :param macros: options of the compiler, for example ``-DSIZE=64``.
    """
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    options = [*FLAGS, *macros]
    texts = [file.read_text() for file in (source, *sorted(source.parent.glob("*.h")))]
    key = json.dumps([compiler, options, texts, describe_processor()])
    folder = user_cache_path("aiochatstream") / "code"
    file = folder / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.so"
    with suppress(OSError):
        if _is_private(folder):
            return _cached_library(compiler, options, source, file)
    with tempfile.TemporaryDirectory() as scratch:
        return CDLL(str(_compile(compiler, options, source, Path(scratch))))


def _is_private(folder: Path) -> bool:
    """Create ``folder`` if it is missing; return True if no other user can change or replace it."""
    if not folder.is_absolute():  # there is no home folder
        return False
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform == "win32":  # the user's own folder is private
        return True
    status, parent = folder.stat(), folder.parent.stat()
    # members of the user's group may write to the parent: a folder that they put there would be theirs
    return status.st_uid == parent.st_uid == os.getuid() and not status.st_mode & 0o022 and not parent.st_mode & 0o002


def _cached_library(compiler: Sequence[str], options: Sequence[str], source: Path, file: Path) -> CDLL:
    with suppress(OSError):  # not compiled yet, or damaged
        return CDLL(str(file))
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        _compile(compiler, options, source, Path(scratch)).replace(file)
    return CDLL(str(file))


def _compile(compiler: Sequence[str], options: Sequence[str], source: Path, folder: Path) -> Path:
    object_file, library = folder / "code.o", folder / "code.so"
    # linked separately, so that torch's OpenMP library is not loaded twice
    for step in (
        [*compiler, *options, "-fopenmp", "-fPIC", "-c", str(source), "-o", str(object_file)],
        [*compiler, "-shared", str(object_file), "-o", str(library)],
    ):
        result = subprocess.run(step, capture_output=True, text=True)  # noqa: S603
        if result.returncode:
            lines = result.stderr.strip().splitlines() or [f"{shlex.join(compiler)} failed"]
            raise OSError(next((line for line in lines if " error: " in line), lines[0]))
    return library
