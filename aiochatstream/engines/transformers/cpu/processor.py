"""The processor of this machine, as part of the names of files that are valid only for it."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import torch


def describe_processor() -> list[Any]:
    """Return the processor's name with the numbers of its model, and its features."""
    return [_name(), dict(torch.cpu.get_capabilities())]


def _name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return platform.processor()
    fields = re.findall(r"^(?:model name|cpu family|model|stepping|CPU part)\s*: (.*)$", text, re.MULTILINE)
    return ", ".join(dict.fromkeys(fields)) or platform.processor()
