"""What single tokens stand for."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""A byte among the tokens of a tokenizer with byte fallback (SentencePiece)."""

SPACE = "▁"
"""What SentencePiece writes for a space."""


class TokenBytes:
    """The bytes that each token of a HuggingFace tokenizer stands for.

    Those of an answer's tokens, joined, are its text in UTF-8 (after a space, with tokenizers that put one before the
    first word). A token may be only a part of a character. Special tokens are their own names; a token that the
    tokenizer does not know is nothing. Of a tokenizer written in Python, whole characters only are known.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {id_: str(token) for id_, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        self._fast = getattr(tokenizer, "is_fast", False)
        decoder = tokenizer.backend_tokenizer.decoder if self._fast else None
        kinds = _kinds(json.loads(decoder.__getstate__())) if decoder is not None else set()
        self._byte_level = _byte_of_character() if "ByteLevel" in kinds else None
        self._byte_fallback = "ByteFallback" in kinds

    def are_all_of(self, token_id: int) -> bool:
        """Return whether a token stands for these bytes everywhere: with SentencePiece, others lose a space at the
        beginning of a text.
        """
        if self._byte_level is not None:
            return True
        return self._byte_fallback and BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(token_id) or "") is not None

    def of(self, token_id: int) -> bytes:
        """The bytes of one token."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if not self._fast:
            return str(self._tokenizer.convert_tokens_to_string([token])).encode()
        if self._byte_level is not None:
            return b"".join(self._byte_level.get(character) or character.encode() for character in token)
        if self._byte_fallback and (byte := BYTE.fullmatch(token)):
            return bytes.fromhex(byte[1])
        return str(token).replace(SPACE, " ").encode()


def _kinds(decoder: dict[str, Any]) -> set[str]:
    """The kinds of decoders that a decoder is made of."""
    return {decoder["type"]}.union(*map(_kinds, decoder.get("decoders", [])))


@functools.cache  # it takes a moment
def _byte_of_character() -> dict[str, bytes]:
    """How byte-level BPE writes bytes (GPT-2): those that can be seen as they are, the others from U+0100 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in seen]
    written = [*((chr(byte), byte) for byte in seen), *((chr(256 + at), byte) for at, byte in enumerate(others))]
    return {character: bytes([byte]) for character, byte in written}
