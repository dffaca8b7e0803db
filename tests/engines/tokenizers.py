"""Tokenizers of all kinds, and texts for them."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

TEXTS = [
    "Hello, how are you?",
    "日本の首都は東京です。鬱蒼たる森。",
    "The family 👨‍👩‍👧‍👦, the flag 🏳️‍🌈 and 🇯🇵🍣",
    "नमस्ते दुनिया, क्षत्रिय ज्ञान",
    "  two\n\n\tlines: naïve café 東京タワー🗼 is 333 m; हिन्दी 👩🏽‍🚀 ok  ",
    "\ufeff\u00a0\u200b é e\u0301 𝔘𝔫𝔦 Ω",
]


def byte_fallback_tokenizer() -> Any:
    """Return a tokenizer like that of Llama 2, with a token per byte for text without other tokens."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnop日本東"]
    vocab = {token: at for at, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))  # noqa: S106
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")  # noqa: S106


BYTE_FALLBACK = byte_fallback_tokenizer()
IN_PYTHON = ByT5Tokenizer()


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
