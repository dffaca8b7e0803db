"""Models with random weights: hybrid ones of some 100 million parameters, and tiny ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Lfm2Config, LlamaConfig, Qwen3_5TextConfig

NO_END: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
MEDIUM: dict[str, Any] = NO_END | {
    "vocab_size": 8192,
    "hidden_size": 640,
    "intermediate_size": 2560,
    "num_hidden_layers": 16,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = NO_END | {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
    "initializer_range": 0.45,
}
"""Sizes of models of bytes, whose answers vary and have no ties."""
CONV, DELTA, FULL = "conv", "linear_attention", "full_attention"


def lfm2() -> Any:
    """Return a configuration with short convolutions between the attention, as in LFM2-350M."""
    layers = [FULL if at in (2, 5, 8, 10, 12, 14) else CONV for at in range(16)]
    return Lfm2Config(**MEDIUM, layer_types=layers, block_auto_adjust_ff_dim=False)


def qwen3_5() -> Any:
    """Return a configuration with Gated DeltaNet in three of four layers, as in Qwen3.5."""
    layers = [FULL if at % 4 == 3 else DELTA for at in range(16)]
    heads = {"head_dim": 64, "linear_num_key_heads": 5, "linear_num_value_heads": 10}
    return Qwen3_5TextConfig(**MEDIUM, **heads, layer_types=layers)


HYBRIDS: dict[str, Callable[[], Any]] = {"lfm2": lfm2, "qwen3.5": qwen3_5}
"""Configurations with attention in some layers and states in the others."""

TINY_CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda **options: LlamaConfig(**TINY, **options),
    "lfm2": lambda **options: Lfm2Config(**TINY, **options, layer_types=[CONV, FULL] * 2),
}


def hybrid_model(name: str, dtype: torch.dtype) -> Any:
    """Return a model with a configuration of :data:`HYBRIDS`."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(HYBRIDS[name](), dtype=dtype).eval()


def tiny_model(name: str, context: int) -> Any:
    """Return a model in float32 for the tokens of ByT5, with a configuration of :data:`TINY_CONFIGS`.

    :param context: maximum number of tokens.
    """
    torch.manual_seed(2)
    config = TINY_CONFIGS[name](max_position_embeddings=context)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def token_bytes(config: Any) -> int:
    """Return the bytes of the keys and values of a token in float32."""
    layers = getattr(config, "layer_types", [FULL] * config.num_hidden_layers)
    head_size = config.hidden_size // config.num_attention_heads
    return 2 * 4 * layers.count(FULL) * int(config.num_key_value_heads * head_size)
