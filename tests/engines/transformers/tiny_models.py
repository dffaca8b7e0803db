"""Tiny models of several families with random weights, and their answers by ``model.generate``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    BloomConfig,
    ByT5Tokenizer,
    DeepseekV3Config,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    NemotronHConfig,
    PhiConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3NextConfig,
    Zamba2Config,
)

BYTES = ByT5Tokenizer()
WINDOW = 64
GROUPED: dict[str, Any] = {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
DELTA_NET: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
LINEAR, FULL = "linear_attention", "full_attention"


def with_layers(
    config: Callable[..., Any], *kinds: str, name: str = "layer_types", **options: Any
) -> Callable[..., Any]:
    """Return a function like ``config`` for a model whose layers are of these kinds, in turns."""

    def build(num_hidden_layers: int, **common: Any) -> Any:
        layers = [kinds[at % len(kinds)] for at in range(num_hidden_layers)]
        return config(num_hidden_layers=num_hidden_layers, **{name: layers}, **options, **common)

    return build


ATTENTION: dict[str, Callable[..., Any]] = {
    "Llama": functools.partial(LlamaConfig, **GROUPED),
    "Qwen2": functools.partial(Qwen2Config, **GROUPED),
    "Qwen3": functools.partial(Qwen3Config, **GROUPED),
    "GPT-2": GPT2Config,
    "GPT-NeoX": functools.partial(GPTNeoXConfig, intermediate_size=64),
    "Gemma 2": functools.partial(Gemma2Config, **GROUPED, sliding_window=WINDOW, attn_logit_softcapping=2.0),
    "Gemma 3": functools.partial(Gemma3TextConfig, **GROUPED, sliding_window=WINDOW),
    "Mistral": functools.partial(MistralConfig, **GROUPED, sliding_window=WINDOW),
    "Qwen2-MoE, with a window in its mask only": functools.partial(
        Qwen2MoeConfig,
        intermediate_size=64,
        num_key_value_heads=1,
        sliding_window=WINDOW,
        use_sliding_window=True,
        max_window_layers=3,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
    "Phi": functools.partial(PhiConfig, intermediate_size=64),
    "GPT-OSS, with sinks": functools.partial(
        GptOssConfig, **GROUPED, sliding_window=WINDOW, num_local_experts=2, num_experts_per_tok=1
    ),
    "DeepSeek-V3, with latent attention": functools.partial(
        DeepseekV3Config,
        intermediate_size=64,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        num_key_value_heads=2,
    ),
    "Llama 4, with chunks above the context": functools.partial(
        Llama4TextConfig, **GROUPED, intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=2048
    ),
}
"""Models with keys and values only."""

STATES: dict[str, Callable[..., Any]] = {
    "Mamba 2": functools.partial(Mamba2Config, state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=16),
}
"""Models with states only."""

HYBRID: dict[str, Callable[..., Any]] = {
    "LFM2": with_layers(Lfm2Config, "conv", FULL, intermediate_size=64, num_key_value_heads=1),
    "Qwen3-Next": with_layers(Qwen3NextConfig, LINEAR, LINEAR, FULL, **GROUPED, **DELTA_NET, **EXPERTS),
    "Qwen3.5": with_layers(Qwen3_5TextConfig, LINEAR, LINEAR, FULL, **GROUPED, **DELTA_NET),
    "Granite 4": with_layers(
        GraniteMoeHybridConfig,
        LINEAR,
        LINEAR,
        FULL,
        intermediate_size=32,
        shared_intermediate_size=32,
        num_key_value_heads=1,
        num_local_experts=2,
        num_experts_per_tok=1,
        attention_multiplier=0.25,
        mamba_chunk_size=16,
        **MAMBA,
    ),
    "Nemotron-H": with_layers(
        NemotronHConfig,
        LINEAR,
        "mlp",
        FULL,
        name="layers_block_type",
        **GROUPED,
        ssm_state_size=8,
        mamba_num_heads=8,
        mamba_head_dim=8,
        n_groups=2,
        chunk_size=16,
        rescale_prenorm_residual=False,
    ),
    "Falcon-H1": functools.partial(
        FalconH1Config, intermediate_size=64, num_key_value_heads=1, mamba_d_ssm=64, mamba_chunk_size=16, **MAMBA
    ),
    "Bamba": functools.partial(
        BambaConfig,
        intermediate_size=64,
        num_key_value_heads=1,
        attn_layer_indices=[1, 4],
        mamba_chunk_size=16,
        **MAMBA,
    ),
}
"""Models with keys, values and states."""

BATCHED = ATTENTION | STATES | HYBRID

SEQUENTIAL: dict[str, Callable[..., Any]] = {
    "BLOOM, with slopes for positions": BloomConfig,
    "Llama 4, with chunks": functools.partial(
        Llama4TextConfig, **GROUPED, intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=WINDOW
    ),
    "Mamba": functools.partial(MambaConfig, state_size=8),
    "Jamba": functools.partial(
        JambaConfig,
        intermediate_size=64,
        num_key_value_heads=1,
        attn_layer_period=3,
        attn_layer_offset=1,
        num_experts=2,
        num_experts_per_tok=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "Zamba 2": with_layers(
        Zamba2Config,
        LINEAR,
        LINEAR,
        "hybrid",
        name="layers_block_type",
        intermediate_size=64,
        mamba_d_state=8,
        n_mamba_heads=8,
        chunk_size=16,
    ),
}
"""Models whose rows cannot be packed."""


def tiny(family: str = "Qwen2", layers: int = 6, **options: Any) -> Any:
    """Return a model without an end-of-sequence token. Its answers vary and have no ties.

    :param options: of the model's configuration.
    """
    common: dict[str, Any] = {
        "vocab_size": len(BYTES),
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.45,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": BYTES.pad_token_id,
    }
    config = (BATCHED | SEQUENTIAL)[family](**common | options)
    torch.manual_seed(2)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def reference(model: Any, ids: list[int], max_new_tokens: int = 24, **options: Any) -> list[int]:
    """Return the greedy answer of ``model.generate``."""
    with torch.inference_mode():
        inputs = torch.tensor([ids])
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            **options,
        )
    new: list[int] = output[0, len(ids) :].tolist()
    return new


def assert_same(model: Any, ids: list[int], actual: list[int], expected: list[int]) -> None:
    """Assert that two answers are equal up to a position where ``model`` has two equally likely tokens."""
    if actual == expected:
        return
    same = next(at for at, (token, other) in enumerate(zip(actual, expected, strict=True)) if token != other)
    with torch.inference_mode():
        best = model(input_ids=torch.tensor([ids + expected[:same]])).logits[0, -1].topk(2).values
    assert best[0] - best[1] < 1e-4, f"token {same}: {actual} is not {expected}"


def question(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)[
        "input_ids"
    ]
    return ids


def some_ids(length: int, seed: int = 0) -> list[int]:
    """Return random tokens for bytes."""
    return torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
