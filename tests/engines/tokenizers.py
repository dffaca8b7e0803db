"""Tokenizers of all kinds, and texts for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import ByT5Tokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

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


class SpaceMovingTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """A tokenizer in Python whose spaces depend on both neighbours, as in tokenizers with SentencePiece's symbols.

    A token for a word begins with a space, which disappears at the beginning of the text, after a mark, an opening
    bracket or a Japanese character, and before a Japanese character. Single bytes form characters.
    """

    WORDS = ("▁a", "▁the", "▁n", "▁'", "'t", "'", "ve", "▁", "▁▁", "b", ".", "▁.", "▁(", ")", "日", "▁本", "東", "\n")
    MARKS = ("<think>", "</think>")

    def __init__(self, **options: Any) -> None:
        tokens = ["<unk>", "</s>", *self.WORDS, *(f"<0x{byte:02X}>" for byte in range(256)), *self.MARKS]
        self._ids = {token: at for at, token in enumerate(tokens)}
        self._tokens = tokens
        super().__init__(
            unk_token="<unk>",  # noqa: S106
            eos_token="</s>",  # noqa: S106
            additional_special_tokens=list(self.MARKS),
            **options,
        )

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return [f"<0x{byte:02X}>" for byte in text.encode()]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens[index]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        data = b"".join(
            bytes.fromhex(token[3:5]) if token.startswith("<0x") else token.replace("▁", " ").encode()
            for token in tokens
        )
        text = data.decode(errors="replace")
        japanese = "[\u3040-\u9fff]"
        return re.sub(f"^ |(?<=[(>]) |(?<={japanese}) | (?={japanese})", "", text)


SPACE_MOVING = SpaceMovingTokenizer()
CLEANING = SpaceMovingTokenizer(clean_up_tokenization_spaces=True)
