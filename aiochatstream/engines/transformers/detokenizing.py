"""From token ids to text, as they come: never half a character, never the whole answer again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

Detokenize = Callable[[int], str]
"""Takes the next token id, returns the text that is now certain (may be empty)."""

REPLACEMENT = "\ufffd"

LOOK_BACK = 8
"""Tokens of a text that goes on, of which the next one may depend: as a word that begins a text has no space before."""


def detokenizer(tokenizer: Any, before: Sequence[int] = ()) -> Detokenize:
    """A fresh detokenizer for one answer. Special tokens are left out.

    :param before: what the answer goes on from, where it is not the beginning of a text; whole characters.
    """
    last = _end_of(tokenizer, before)
    if getattr(tokenizer, "is_fast", False):
        return _Stream(tokenizer, last).step
    return _Window(tokenizer, last).step


def _end_of(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """The last ids, from the beginning of a character on: to go on after half a one, nothing could be read."""
    for length in range(LOOK_BACK, LOOK_BACK + 4):  # characters have up to four bytes
        last = list(ids[-length:])
        if not str(tokenizer.decode(last)).startswith(REPLACEMENT):
            break
    return last


class _Stream:
    """For tokenizers with a Rust backend: its DecodeStream.

    That one gives up where text that it has shown changes. With byte fallback (Llama 2 and its like) it does: a line
    end and the first byte of an emoji, each a token, are decoded together, and make no character yet. It then goes on
    anew, after the last whole token that was shown.
    """

    def __init__(self, tokenizer: Any, before: list[int]) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._anchor = before
        self._stream = DecodeStream(ids=before, skip_special_tokens=True)

    def step(self, token_id: int) -> str:
        if token_id in self._special:
            return ""
        try:
            text = self._stream.step(self._backend, token_id)
        except Exception:  # noqa: BLE001 - it raises no class of its own
            self._stream = DecodeStream(ids=self._anchor, skip_special_tokens=True)
            text = self._stream.step(self._backend, token_id)
        if text and not (self._backend.id_to_token(token_id) or "").startswith("<0x"):
            self._anchor = [token_id]
        return text or ""


class _Window:
    """For tokenizers written in Python: decodes a short window of the last tokens, twice a step.

    The window begins where the text was last certain, one piece earlier, so that a tokenizer that treats the first
    token of a text in its own way (a leading space) does so outside of what is shown.
    """

    def __init__(self, tokenizer: Any, before: list[int]) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._ids = [token_id for token_id in before if token_id not in self._special]
        self._shown = len(self._ids)

    def step(self, token_id: int) -> str:
        if token_id in self._special:
            return ""
        self._ids.append(token_id)
        before = self._decode(self._ids[: self._shown])
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT) or len(text) <= len(before):
            return ""
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
