"""Incremental detokenization: only complete characters, in constant time per token."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from aiochatstream.engines.replacements import Replacements
from aiochatstream.engines.token_bytes import TokenBytes

REPLACEMENT = "\ufffd"

CONTEXT_TOKENS = 8
"""Number of preceding tokens that may influence the text of the next one: for example, a word at the start of a text
has no space before it."""

WINDOW_TOKENS = 16
"""Number of tokens that are decoded together before the window moves on."""

MAX_CHARACTER_TOKENS = 4
"""Maximum number of bytes, and thus of tokens, of a character."""

MAX_HELD_SPACES = 4
"""Maximum number of spaces at the end of a text that a tokenizer may move or remove when the next token follows."""

CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
"""Texts around which transformers' ``clean_up_tokenization`` removes spaces, one after another."""


class Detokenizer(ABC):
    """Converts the tokens of one answer to text. Special tokens have no text, unless they are marks."""

    @abstractmethod
    def step(self, token_id: int) -> str:
        """Add a token; return the text that later tokens cannot change, possibly empty."""

    @abstractmethod
    def mark(self, token_id: int, name: str) -> str:
        """Add a control token that is text; return the pending text before its ``name``."""

    @abstractmethod
    def end(self, *, cut_off: bool = False) -> str:
        """Return the pending text at the end of the answer.

        :param cut_off: True omits an incomplete character, so that the answer can be continued; False returns U+FFFD
            for it.
        """


def detokenizer(tokenizer: Any, before: Sequence[int] = ()) -> Detokenizer:
    """Return a new detokenizer for one answer.

    :param before: token ids that the answer continues; empty if it starts a text. They may end within a character,
        which the answer completes or leaves incomplete.
    """
    is_fast = getattr(tokenizer, "is_fast", False)
    special = frozenset(tokenizer.all_special_ids)
    if is_fast:  # the backend also omits special tokens without a role
        special |= {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    preceding = [token_id for token_id in before[-CONTEXT_TOKENS * 2 :] if token_id not in special]
    return (_ByteDetokenizer if is_fast else _WindowDetokenizer)(tokenizer, special, preceding)


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

    def mark(self, token_id: int, name: str) -> str:
        text = self.end()
        self._last = [token_id]
        return text

    def end(self, *, cut_off: bool = False) -> str:
        if cut_off:
            return ""
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
        before = self._backend.decode(self._last, skip_special_tokens=False)  # the last token may be a mark
        text: str = self._backend.decode([*self._last, token_id], skip_special_tokens=False)
        return text[len(before) :]


class _WindowDetokenizer(Detokenizer):
    """Detokenizer for tokenizers written in Python, whose ``decode`` is only known as a whole.

    It decodes a window of the last tokens at each step. The window starts with tokens whose text was already returned,
    so that a special treatment of a text's first token (such as a leading space) does not affect new text. The end of
    the text is pending as long as the next token may change it.
    """

    def __init__(self, tokenizer: Any, special: frozenset[int], before: list[int]) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._options: dict[str, bool] = {}
        self._clean_up: list[Replacements] = []
        if getattr(tokenizer, "clean_up_tokenization_spaces", False):
            self._options["clean_up_tokenization_spaces"] = False
            self._clean_up = [Replacements([(text, text.strip(" "))]) for text in CLEAN_UP]
        self._ids = self._at_character_start(before)
        self._returned = len(self._decode(self._ids))
        """Number of characters of the window's text that were returned."""

    def step(self, token_id: int) -> str:
        if token_id in self._special:
            return ""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        return self._cleaned(self._take(text, len(text) - _pending_length(text)))

    def mark(self, token_id: int, name: str) -> str:
        self._ids.append(token_id)
        text = self._decode(self._ids)
        at = text.find(name, self._returned)
        before = self._take(text, at if at >= 0 else len(text))
        self._returned += len(name) if at >= 0 else 0
        return self._cleaned(before, final=True)

    def end(self, *, cut_off: bool = False) -> str:
        text = self._decode(self._ids)
        return self._cleaned(self._take(text, len(text.rstrip(REPLACEMENT)) if cut_off else len(text)), final=True)

    def _take(self, text: str, end: int) -> str:
        """Return the new part of the window's ``text`` before ``end``, and move the window."""
        new = text[self._returned : end]
        self._returned += len(new)
        if len(self._ids) >= WINDOW_TOKENS:
            self._move(text[self._returned :])
        return new

    def _move(self, pending: str) -> None:
        """Drop the oldest tokens, unless this would change the text that is ``pending``."""
        last = self._ids[-CONTEXT_TOKENS:]
        text = self._decode(last)
        if text.endswith(pending):
            self._ids, self._returned = last, len(text) - len(pending)

    def _cleaned(self, text: str, *, final: bool = False) -> str:
        for replacements in self._clean_up:
            text = replacements.push(text) + (replacements.flush() if final else "")
        return text

    def _at_character_start(self, ids: list[int]) -> list[int]:
        for length in range(CONTEXT_TOKENS, CONTEXT_TOKENS + MAX_CHARACTER_TOKENS):
            last = ids[-length:]
            if not self._decode(last).startswith(REPLACEMENT):
                break
        return last

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, **self._options))


def _pending_length(text: str) -> int:
    """Return the number of characters at the end of ``text`` that the next token may change."""
    replacements = min(len(text) - len(text.rstrip(REPLACEMENT)), MAX_CHARACTER_TOKENS - 1)
    before = text[: len(text) - replacements]
    return replacements + min(len(before) - len(before.rstrip(" ")), MAX_HELD_SPACES)


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")
