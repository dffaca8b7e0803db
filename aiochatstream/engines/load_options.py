"""Options for loading a model. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
DTypeName = Literal["auto", "float32", "float16", "bfloat16"]
Quantize = Literal["int8"]

DEVICE_MAPS: tuple[DeviceMap, ...] = get_args(DeviceMap)
DTYPE_NAMES: tuple[DTypeName, ...] = get_args(DTypeName)
QUANTIZE_NAMES: tuple[Quantize, ...] = get_args(Quantize)
"""Values of ``TransformersEngine(quantize=...)``."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options for loading a model and its tokenizer. Raise ValueError for invalid ones.

    :param device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    :param dtype: ``auto`` is the fastest dtype of the device; for a quantised checkpoint, its own one.
    :param device_map: distributes the layers over all GPUs, the CPU and the disk, as accelerate does; None places the
        whole model on ``device``.
    :param revision: branch, tag or commit of a HuggingFace id.
    :param trust_remote_code: True runs the Python code that the checkpoint contains.
    :param quantize: see :class:`TransformersEngine`, to which it is passed. ``dtype`` is that
        of the weights until their conversion.
    :param adapter: folder of a LoRA, which is merged into the weights.
    """

    device: str = "auto"
    dtype: DTypeName = "auto"
    device_map: DeviceMap | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    quantize: Quantize | None = None
    adapter: Path | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("dtype", self.dtype, DTYPE_NAMES),
            ("quantize", self.quantize or QUANTIZE_NAMES[0], QUANTIZE_NAMES),
            ("device_map", self.device_map or "auto", DEVICE_MAPS),
        ):
            if value not in choices:
                listed = " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
                raise ValueError(f"{name}: must be {listed}, not {value}.")
        if self.device_map is not None and self.quantize is not None:
            raise ValueError("quantize: must be absent with device_map, which distributes the layers.")
        if self.device_map is not None and self.device != "auto":
            raise ValueError(f"device: must be auto with device_map, which places the layers, not {self.device}.")
