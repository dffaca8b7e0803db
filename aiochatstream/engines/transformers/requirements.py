"""Packages that a checkpoint requires. They are checked before the checkpoint is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from transformers.utils import cached_file

from aiochatstream.extras import MissingExtra, install_command

QUANTIZATION_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "eetq": ("kernels",),
    "gptq": ("gptqmodel", "optimum"),
    "hqq": ("hqq",),
    "quanto": ("optimum-quanto",),
    "quark": ("amd-quark",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
"""Packages for each ``quant_method`` of config.json. transformers loads the others without a package, or raises an
error that names it; without kernels for MXFP4 and FP8, it dequantises the weights."""

DEQUANTIZED_WITHOUT: Mapping[str, tuple[str, ...]] = {"mxfp4": ("kernels", "triton")}
"""Packages without which transformers dequantises the weights of a ``quant_method``."""

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
SENTENCEPIECE_PACKAGES = ("sentencepiece", "protobuf")


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """Return the ``quant_method`` of a checkpoint; None if it is not quantised.

    :param config: content of config.json.
    """
    text_config = config.get("text_config") or {}
    quantization = config.get("quantization_config") or text_config.get("quantization_config")
    if not quantization:
        return None
    if quantization.get("load_in_8bit") or quantization.get("load_in_4bit"):
        return "bitsandbytes"
    method = quantization.get("quant_method")
    return None if method is None else str(method)


def require_quantization_packages(source: str, method: str) -> None:
    """Raise MissingExtra, with the command that installs them, if packages for a quantised checkpoint are missing."""
    packages = missing_packages(QUANTIZATION_PACKAGES.get(method, ()))
    if packages:
        raise MissingExtra(
            f"{source} is quantised ({method}), which requires {' and '.join(packages)}. "
            f"Install with: pip install {' '.join(packages)}"
        )


def require_tokenizer_packages(source: str, folder: str, revision: str | None = None) -> None:
    """Raise MissingExtra if the tokenizer is a SentencePiece model only, and packages to read it are missing."""
    packages = missing_packages(SENTENCEPIECE_PACKAGES)
    if not packages or _has_file(folder, "tokenizer.json", revision):
        return
    if any(_has_file(folder, file, revision) for file in SENTENCEPIECE_FILES):
        raise MissingExtra(
            f"The tokenizer of {source} is a SentencePiece model, which requires {' and '.join(packages)}. "
            f"Install with: {install_command('japanese')}"
        )


def missing_packages(packages: Sequence[str]) -> list[str]:
    """Return those of ``packages`` that are not installed.

    :param packages: names on the package index.
    """
    return [package for package in packages if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _has_file(folder: str, file: str, revision: str | None) -> bool:
    """Return True if a folder or HuggingFace id contains ``file``. Raise OSError for an unknown id or revision."""
    path = cached_file(
        folder,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return path is not None
