"""Options that specify a model and how to load it, for all subcommands that load one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from aiochatstream.engines.load_options import DEVICE_MAPS, DTYPE_NAMES, QUANTIZE_NAMES, LoadOptions
from aiochatstream.texts import Texts, format_bytes

NAMES = tuple(field.name for field in fields(LoadOptions))
"""Names of the options in the parsed arguments, which contain only specified ones."""


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options to a parser or a group. Absent ones are no attributes of the parsed arguments."""

    def add(option: str, **settings: Any) -> None:
        parser.add_argument(option, default=argparse.SUPPRESS, **settings)

    add("--device", metavar="auto|cpu|cuda|cuda:N|mps", help="device of the model (default: auto)")
    add("--dtype", choices=DTYPE_NAMES, help="data type of the model (default: auto)")
    add("--quantize", choices=QUANTIZE_NAMES, help="convert linear layers to int8 (CPU, g++): faster, in less memory")
    add("--device-map", choices=DEVICE_MAPS, help="distribute the layers over several devices, in place of --device")
    add("--revision", metavar="REV", help="branch, tag or commit of a HuggingFace id")
    add("--trust-remote-code", action="store_true", help="run the Python code that the model contains")
    add("--adapter", type=Path, metavar="FOLDER", help="LoRA to merge into the weights")


def describe_weights(source: str | None, memory: str, texts: Texts) -> str:
    """Return the size of the weights; for a .gguf file, also its size on the disk.

    :param source: the model that is loaded; None for the small model.
    :param memory: size of the weights in memory.
    """
    from aiochatstream.engines.transformers.loading import locate  # loaded together with the model

    path = Path(locate(source))
    if path.suffix != ".gguf":
        return memory
    return texts.dequantized.format(disk=format_bytes(path.stat().st_size), memory=memory)


def load_options(specified: Mapping[str, Any]) -> LoadOptions:
    """Return the options for loading. Raise ValueError if they contradict each other.

    :param specified: parsed arguments.
    """
    return LoadOptions(**{name: specified[name] for name in NAMES if name in specified})
