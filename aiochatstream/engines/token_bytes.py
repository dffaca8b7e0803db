"""The bytes of single tokens."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""Token for one byte, of a tokenizer with byte fallback (SentencePiece)."""

SPACE = "▁"
"""SentencePiece's symbol for a space."""


class TokenBytes:
    """The bytes of each token of a HuggingFace tokenizer.

    The concatenated bytes of an answer's tokens are its text in UTF-8 (after a space, with tokenizers that put one
    before the first word). A token may be only a part of a character. The bytes of a special token are its name, those
    of an unknown token are empty. With a tokenizer written in Python, only whole characters are known.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {id_: str(token) for id_, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        self._fast = getattr(tokenizer, "is_fast", False)
        decoder = tokenizer.backend_tokenizer.decoder if self._fast else None
        types = _decoder_types(json.loads(decoder.__getstate__())) if decoder is not None else set()
        self._byte_level = byte_level_alphabet() if "ByteLevel" in types else None
        self._byte_fallback = "ByteFallback" in types

    def is_position_independent(self, token_id: int) -> bool:
        """Return True if a token has the same bytes everywhere.

        With SentencePiece, all tokens but those for single bytes may lose a space at the beginning of a text.
        """
        if self._byte_level is not None:
            return True
        if not self._byte_fallback:
            return False
        return BYTE_TOKEN.fullmatch(self._tokenizer.convert_ids_to_tokens(token_id) or "") is not None

    def of(self, token_id: int) -> bytes:
        """Return the bytes of one token."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if not self._fast:
            return str(self._tokenizer.convert_tokens_to_string([token])).encode()
        if self._byte_level is not None:
            return b"".join(self._byte_level.get(character) or character.encode() for character in token)
        if self._byte_fallback and (byte := BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        return str(token).replace(SPACE, " ").encode()


def _decoder_types(decoder: dict[str, Any]) -> set[str]:
    """Return the types of a decoder and of all decoders in it."""
    return {decoder["type"]}.union(*map(_decoder_types, decoder.get("decoders", [])))


@functools.cache
def byte_level_alphabet() -> dict[str, bytes]:
    """Return the byte of each character that byte-level BPE (GPT-2) writes for one.

    Visible characters stand for themselves; the others are numbered from U+0100.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    codes = [*((chr(byte), byte) for byte in visible), *((chr(256 + at), byte) for at, byte in enumerate(others))]
    return {character: bytes([byte]) for character, byte in codes}
