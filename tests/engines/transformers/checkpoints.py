"""Checkpoints in folders, of tiny models with random weights, for the tests that load them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from gguf import GGUFWriter, TokenType
from transformers import AutoModelForCausalLM, Qwen2Config

from aiochatstream.engines.token_bytes import byte_level_alphabet

SENTENCES = (
    "こんにちは、世界。",
    "今日は良い天気ですね。",
    "東京は日本の首都です。",
    "吾輩は猫である。名前はまだ無い。",
    "Hello world, how are you?",
)


def save_model(
    folder: Path, config_class: Callable[..., Any] = Qwen2Config, *, vocab_size: int = 384, **config: Any
) -> Path:
    """Save a model of two layers without a tokenizer, and return its folder."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(
        config_class(**{"vocab_size": vocab_size, "tie_word_embeddings": False, **sizes, **heads, **config})
    )
    model.save_pretrained(folder)
    return folder


def edit_json(file: Path, **values: Any) -> None:
    """Replace entries of a JSON object in ``file``."""
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **values}))


def save_sentencepiece(
    folder: Path, name: str, *, vocab_size: int, byte_fallback: bool, sentences: Sequence[str] = SENTENCES
) -> None:
    """Train a SentencePiece model and save it in ``folder``, without a tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((*sentences,) * 20),
        model_writer=model,
        vocab_size=vocab_size,
        byte_fallback=byte_fallback,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / name).write_bytes(model.getvalue())


def save_rinna_tokenizer(folder: Path) -> Path:
    """Save a tokenizer like those of rinna: spiece.model, and the class T5Tokenizer."""
    save_sentencepiece(folder, "spiece.model", vocab_size=100, byte_fallback=False)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="T5Tokenizer", extra_ids=0)
    return folder


def save_sarashina_tokenizer(folder: Path) -> Path:
    """Save a tokenizer like those of Sarashina2: tokenizer.model with byte fallback, and the class LlamaTokenizer."""
    save_sentencepiece(folder, "tokenizer.model", vocab_size=340, byte_fallback=True)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", legacy=False)
    return folder


def save_gguf(file: Path) -> Path:
    """Write a small llama with a vocabulary of bytes, in float32, and return its file."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_level_alphabet(), "\u0120t"]
    hidden, heads, layers, generator = 64, 2, 2, np.random.default_rng(3)
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["\u0120 t"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}<|im_start|>{{ message.content }}{% endfor %}")
    square, names = (hidden, hidden), ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {"token_embd": (len(tokens), hidden), "output": (len(tokens), hidden), "output_norm": (hidden,)}
    for layer in range(layers):
        shapes |= {f"blk.{layer}.{name}": square for name in names}
        shapes |= {f"blk.{layer}.{name}": (hidden,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", generator.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
