"""From token ids to text, as they come: never half a character, never the whole answer again."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from aiochatstream.engines.token_bytes import TokenBytes

REPLACEMENT = "\ufffd"

LOOK_BACK = 8
"""Tokens of a text that goes on, of which the next one may depend: as a word that begins a text has no space before."""

LONGEST_CHARACTER = 4
"""Bytes, and so tokens, that one character may take."""


class Detokenizer(ABC):
    """The text of one answer. Special tokens have none."""

    @abstractmethod
    def step(self, token_id: int) -> str:
        """Return the text that the next token makes certain; it may be empty."""

    @abstractmethod
    def end(self) -> str:
        """Return what is left where no token follows: U+FFFD for a part of a character."""


def detokenizer(tokenizer: Any, before: Sequence[int] = ()) -> Detokenizer:
    """Return a fresh detokenizer for one answer.

    :param before: the token ids that the answer goes on from, where it is not the beginning of a text. They may end in
        a part of a character, which the answer completes or leaves.
    """
    special = frozenset(tokenizer.all_special_ids)
    last = [token_id for token_id in before[-LOOK_BACK * 2 :] if token_id not in special]
    if getattr(tokenizer, "is_fast", False):
        return _Bytes(tokenizer, special, last)
    return _Window(tokenizer, special, last)


class _Bytes(Detokenizer):
    """For tokenizers with a Rust backend: tokens that are bytes are joined as bytes, others are decoded after the token
    before them.

    The backend's own DecodeStream waits at U+FFFD for what may never come, and with byte fallback (as in Llama 2)
    decodes a line end and the first byte of an emoji together, to neither.
    """

    def __init__(self, tokenizer: Any, special: frozenset[int], before: list[int]) -> None:
        self._backend, self._special, self._bytes = tokenizer.backend_tokenizer, special, TokenBytes(tokenizer)
        self._last = before[-1:]
        self._decoder = _decoder()
        self._decoder.decode(b"".join(self._bytes_of(token_id) or b" " for token_id in before))
        self._begun = self._decoder.getstate()[0]
        """The bytes of a character that is not complete, from ``before``."""
        self._fresh = b""
        """The bytes that the answer has added to those."""

    def step(self, token_id: int) -> str:
        if token_id in self._special:
            return ""
        data = self._bytes_of(token_id)
        text = self.end() + self._after_last(token_id) if data is None else self._decode(data)
        self._last = [token_id]
        return text

    def end(self) -> str:
        if self._begun:  # is not the answer's own
            self._begun, self._fresh, self._decoder, fresh = b"", b"", _decoder(), self._fresh
            return fresh.decode(errors="replace")
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text

    def _decode(self, data: bytes) -> str:
        text = self._decoder.decode(data)
        if not self._begun:
            return text
        self._fresh += data
        if not text:
            return ""
        fresh, self._begun, self._fresh = self._fresh, b"", b""
        if text[0] != REPLACEMENT:
            return text
        self._decoder = _decoder()
        return self._decoder.decode(fresh)

    def _bytes_of(self, token_id: int) -> bytes | None:
        """Return the bytes of a token that is nothing but bytes, else None."""
        return self._bytes.of(token_id) if self._bytes.are_all_of(token_id) else None

    def _after_last(self, token_id: int) -> str:
        before = self._backend.decode(self._last, skip_special_tokens=True)
        text: str = self._backend.decode([*self._last, token_id], skip_special_tokens=True)
        return text[len(before) :]


class _Window(Detokenizer):
    """For tokenizers written in Python: decodes a short window of the last tokens, twice a step.

    The window begins where the text was last certain, one piece earlier, so that a tokenizer that treats the first
    token of a text in its own way (a leading space) does so outside of what is shown.
    """

    def __init__(self, tokenizer: Any, special: frozenset[int], before: list[int]) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._ids = self._from_a_character_on(before)
        self._shown = len(self._ids)

    def step(self, token_id: int) -> str:
        if token_id in self._special:
            return ""
        self._ids.append(token_id)
        text = self._new_text(len(self._ids))
        if not text or text.endswith(REPLACEMENT):
            # of so many tokens that make no character, the oldest one never will
            return self._show(self._shown + 1) if len(self._ids) - self._shown >= LONGEST_CHARACTER else ""
        return self._show(len(self._ids))

    def end(self) -> str:
        return self._show(len(self._ids))

    def _show(self, end: int) -> str:
        """Return the text of the tokens that are not shown yet, up to ``end``."""
        text = self._new_text(end)
        self._ids, self._shown = self._ids[self._shown :], end - self._shown
        return text

    def _new_text(self, end: int) -> str:
        return self._decode(self._ids[:end])[len(self._decode(self._ids[: self._shown])) :]

    def _from_a_character_on(self, ids: list[int]) -> list[int]:
        for length in range(LOOK_BACK, LOOK_BACK + LONGEST_CHARACTER):
            last = ids[-length:]
            if not self._decode(last).startswith(REPLACEMENT):
                break
        return last

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")
