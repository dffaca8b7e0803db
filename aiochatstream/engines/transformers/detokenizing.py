"""Incremental detokenization: only complete characters, in constant time per token."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from aiochatstream.engines.token_bytes import TokenBytes

REPLACEMENT = "\ufffd"

CONTEXT_TOKENS = 8
"""Number of preceding tokens that may influence the text of the next one: for example, a word at the start of a text
has no space before it."""

MAX_CHARACTER_TOKENS = 4
"""Maximum number of bytes, and thus of tokens, of a character."""


class Detokenizer(ABC):
    """Converts the tokens of one answer to text. Special tokens have no text."""

    @abstractmethod
    def step(self, token_id: int) -> str:
        """Add a token; return the text that later tokens cannot change, possibly empty."""

    @abstractmethod
    def end(self) -> str:
        """Return the pending text at the end of the answer: U+FFFD for an incomplete character."""


def detokenizer(tokenizer: Any, before: Sequence[int] = ()) -> Detokenizer:
    """Return a new detokenizer for one answer.

    :param before: token ids that the answer continues; empty if it starts a text. They may end within a character,
        which the answer completes or leaves incomplete.
    """
    special = frozenset(tokenizer.all_special_ids)
    preceding = [token_id for token_id in before[-CONTEXT_TOKENS * 2 :] if token_id not in special]
    if getattr(tokenizer, "is_fast", False):
        return _ByteDetokenizer(tokenizer, special, preceding)
    return _WindowDetokenizer(tokenizer, special, preceding)


class _ByteDetokenizer(Detokenizer):
    """Detokenizer for tokenizers with a Rust backend.

    Tokens that stand for bytes are joined as bytes; the others are decoded together with the token before them.

    The backend's DecodeStream waits at U+FFFD for text that may never follow, and with byte fallback (as in Llama 2)
    it loses a line end that is followed by the first byte of an emoji.
    """

    def __init__(self, tokenizer: Any, special: frozenset[int], before: list[int]) -> None:
        self._backend, self._special, self._bytes = tokenizer.backend_tokenizer, special, TokenBytes(tokenizer)
        self._last = before[-1:]
        self._decoder = _decoder()
        self._decoder.decode(b"".join(self._bytes_of(token_id) or b" " for token_id in before))
        self._prompt_bytes = self._decoder.getstate()[0]
        """Bytes of an incomplete character at the end of ``before``."""
        self._added_bytes = b""
        """Bytes of the answer that may complete it."""

    def step(self, token_id: int) -> str:
        if token_id in self._special:
            return ""
        data = self._bytes_of(token_id)
        text = self.end() + self._after_last(token_id) if data is None else self._decode(data)
        self._last = [token_id]
        return text

    def end(self) -> str:
        if self._prompt_bytes:  # not part of the answer
            added, self._prompt_bytes, self._added_bytes = self._added_bytes, b"", b""
            self._decoder = _decoder()
            return added.decode(errors="replace")
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text

    def _decode(self, data: bytes) -> str:
        text = self._decoder.decode(data)
        if not self._prompt_bytes:
            return text
        self._added_bytes += data
        if not text:
            return ""
        added, self._prompt_bytes, self._added_bytes = self._added_bytes, b"", b""
        if text[0] != REPLACEMENT:
            return text
        self._decoder = _decoder()
        return self._decoder.decode(added)

    def _bytes_of(self, token_id: int) -> bytes | None:
        """Return the bytes of a token; None if they depend on its position."""
        return self._bytes.of(token_id) if self._bytes.is_position_independent(token_id) else None

    def _after_last(self, token_id: int) -> str:
        before = self._backend.decode(self._last, skip_special_tokens=True)
        text: str = self._backend.decode([*self._last, token_id], skip_special_tokens=True)
        return text[len(before) :]


class _WindowDetokenizer(Detokenizer):
    """Detokenizer for tokenizers written in Python. It decodes a short window of the last tokens twice per step.

    The window starts with text that was already returned, so that a special treatment of a text's first token (such as
    a leading space) does not affect new text.
    """

    def __init__(self, tokenizer: Any, special: frozenset[int], before: list[int]) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._ids = self._at_character_start(before)
        self._returned = len(self._ids)

    def step(self, token_id: int) -> str:
        if token_id in self._special:
            return ""
        self._ids.append(token_id)
        text = self._new_text(len(self._ids))
        if not text or text.endswith(REPLACEMENT):
            pending = len(self._ids) - self._returned
            # of this many tokens, the oldest one can no longer become a character
            return self._return_until(self._returned + 1) if pending >= MAX_CHARACTER_TOKENS else ""
        return self._return_until(len(self._ids))

    def end(self) -> str:
        return self._return_until(len(self._ids))

    def _return_until(self, end: int) -> str:
        """Return the new text of the tokens up to ``end``, and move the window."""
        text = self._new_text(end)
        self._ids, self._returned = self._ids[self._returned :], end - self._returned
        return text

    def _new_text(self, end: int) -> str:
        return self._decode(self._ids[:end])[len(self._decode(self._ids[: self._returned])) :]

    def _at_character_start(self, ids: list[int]) -> list[int]:
        for length in range(CONTEXT_TOKENS, CONTEXT_TOKENS + MAX_CHARACTER_TOKENS):
            last = ids[-length:]
            if not self._decode(last).startswith(REPLACEMENT):
                break
        return last

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")
