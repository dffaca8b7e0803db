"""Checkpoints in folders, of tiny models with random weights, for the tests that load them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

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
