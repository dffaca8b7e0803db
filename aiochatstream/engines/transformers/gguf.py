"""Conversion of .gguf files to folders that transformers loads."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

logger = logging.getLogger(__name__)


def convert_gguf(gguf: Path) -> Path:
    """Return a folder with ``gguf`` as a plain bfloat16 model; it is converted once, into the user's cache folder.

    Several processes may call this concurrently: one converts, the others wait. The folder appears atomically, and
    one with truncated weights is converted again.
    """
    target = user_cache_path("aiochatstream") / "models" / _fingerprint(gguf) / gguf.stem
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir() and not _is_whole(target):
            logger.warning("The converted model in %s is damaged; converting it again", target)
            shutil.rmtree(target)
        if not target.is_dir():
            logger.info("Converting %s (once, to %s)", gguf.name, target)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                model = Path(scratch) / "model"
                _convert(gguf, model)
                for path in (*model.rglob("*"), model):
                    _sync(path)  # a crash must not leave a complete folder with incomplete files
                model.rename(target)
                _sync(target.parent)
    return target


@contextmanager
def name_converted_folder(located: str) -> Iterator[None]:
    """Add the folder of a converted model to the error if it cannot be loaded."""
    try:
        yield
    except Exception as error:
        if not located.endswith(".gguf"):
            raise
        raise RuntimeError(
            f"The converted model in {convert_gguf(Path(located))} cannot be loaded ({error}). "
            "If this happens again, delete that folder; the model is then converted again."
        ) from error


def _fingerprint(file: Path) -> str:
    """Return a hash of the whole content. The file is read again only after a change."""
    stat = file.stat()
    return _hash_of(file.resolve(), (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))


@functools.lru_cache(maxsize=16)
def _hash_of(file: Path, stat: tuple[int, ...]) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:32]


def _is_whole(model: Path) -> bool:
    """Return True if no file of weights is truncated."""
    try:
        for file in model.glob("*.safetensors"):
            with safe_open(file, "pt"):
                pass
    except SafetensorError:
        return False
    return True


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    with suppress(OSError):  # not every system supports it for folders
        descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _convert(gguf: Path, target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
