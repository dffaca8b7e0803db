"""Tiny models of several families with random weights, and their answers by ``model.generate``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    ByT5Tokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

BYTES = ByT5Tokenizer()
WINDOW = 64
GROUPED = {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16}
BATCHED: dict[str, Callable[..., Any]] = {
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
}
SEQUENTIAL: dict[str, Callable[..., Any]] = {
    "Mamba": functools.partial(MambaConfig, state_size=8),
    "LFM2, a hybrid": functools.partial(
        Lfm2Config, intermediate_size=64, num_key_value_heads=1, layer_types=["conv", "full_attention"] * 3
    ),
    "BLOOM, with slopes for positions": BloomConfig,
    "GPT-OSS, with sinks": functools.partial(
        GptOssConfig, **GROUPED, sliding_window=WINDOW, num_local_experts=2, num_experts_per_tok=1
    ),
}


def tiny(family: str = "Qwen2", layers: int = 6) -> Any:
    """Return a model without an end-of-sequence token. Its answers vary and have no ties."""
    config = (BATCHED | SEQUENTIAL)[family](
        vocab_size=len(BYTES),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.45,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=BYTES.pad_token_id,
    )
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
