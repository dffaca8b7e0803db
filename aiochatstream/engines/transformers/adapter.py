"""Adapters (LoRA), merged into the weights of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiochatstream.extras import requires_extra

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def check_adapter(adapter: Path) -> None:
    """Raise FileNotFoundError if a folder contains no adapter, and MissingExtra if peft is not installed."""
    if not adapter.is_dir():
        raise FileNotFoundError(f"adapter: there is no folder {adapter}.")
    files = {file.name for file in adapter.iterdir()}
    for names in ((ADAPTER_CONFIG,), WEIGHTS):
        if files.isdisjoint(names):
            raise FileNotFoundError(f"adapter: the folder {adapter} contains no adapter: it has no {names[0]}.")
    with requires_extra("adapter"):
        import peft  # noqa: F401


def has_tokenizer(adapter: Path) -> bool:
    """Return True if the folder of an adapter contains a tokenizer, for example with a new chat template."""
    return (adapter / "tokenizer_config.json").is_file()


def merge_adapter(model: Any, adapter: Path) -> Any:
    """Return ``model`` with the weights of an adapter added to its own. Raise ValueError if they do not fit."""
    from peft import PeftModel  # a slow import

    name = type(model).__name__
    try:
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except Exception as error:
        reason = " ".join(" ".join(str(error).splitlines()[:2]).split()) or repr(error)
        raise ValueError(f"adapter: {adapter} cannot be merged into {name} ({reason}).") from error
