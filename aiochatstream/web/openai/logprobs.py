"""Log probabilities of tokens, in the two formats of OpenAI's API."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from aiochatstream.engines import TokenBytes, TokenLogprob
from aiochatstream.web.openai.response_models import ContentLogprob, TextLogprobs, TopLogprob


class TextOffsets:
    """Offsets of an answer's tokens in its text, in characters. A token may be a part of a character.

    :param start: number of characters of tokens before the text: a BOS, or the space before a first word.
    """

    def __init__(self, start: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = -start

    def advance(self, data: bytes) -> int:
        """Return the offset of the next token, whose bytes are ``data``."""
        partial, offset = self._decoder.getstate()[0], self._offset
        self._offset += len(self._decoder.decode(data))
        return offset + (bool(partial and data) and not _continues(partial, data[:1]))


def _continues(partial: bytes, byte: bytes) -> bool:
    """Return whether ``byte`` can follow ``partial``, the first bytes of a character."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(partial + byte)
    except UnicodeDecodeError:
        return False
    return True


class LogprobFormatter:
    """Converter of logprobs to OpenAI's formats.

    Special tokens, which have no text (such as the end of the answer), are omitted by default.

    :param all_tokens: also include special tokens, for programs that count the tokens of echoed prompts.
    """

    def __init__(self, tokenizer: Any, *, all_tokens: bool = False) -> None:
        self._bytes = TokenBytes(tokenizer)
        self._special = frozenset() if all_tokens else frozenset(tokenizer.all_special_ids)

    def chars_before(self, text: str, ids: Sequence[int]) -> int:
        """Return the number of characters of the tokens ``ids`` before ``text``, their source or their text."""
        decoded = b"".join(map(self._bytes.of, ids)).decode(errors="replace")
        return len(decoded) - len(text) if decoded.endswith(text) else max(0, decoded.find(text))

    def for_chat(self, logprobs: Sequence[TokenLogprob]) -> list[ContentLogprob]:
        """Return ``logprobs`` in the format of chat completions and responses."""
        return [
            {
                **self._entry(logprob.token_id, logprob.logprob),
                "top_logprobs": [self._entry(*top) for top in logprob.top],
            }
            for logprob in self._included(logprobs)
        ]

    def for_completion(self, logprobs: Sequence[TokenLogprob], offsets: TextOffsets) -> TextLogprobs:
        """Return ``logprobs`` in the format of completions.

        The top logprobs include the token itself. Tokens that are parts of characters are written as bytes.
        """
        included = self._included(logprobs)
        return {
            "tokens": [self._text(logprob.token_id) for logprob in included],
            "token_logprobs": [logprob.logprob for logprob in included],
            "top_logprobs": [self._top_by_text(logprob) for logprob in included],
            "text_offset": [max(0, offsets.advance(self._bytes.of(logprob.token_id))) for logprob in included],
        }

    def _top_by_text(self, logprob: TokenLogprob) -> dict[str, float]:
        if not logprob.top:
            return {}
        top: dict[str, float] = {}
        for token_id, value in (*logprob.top, (logprob.token_id, logprob.logprob)):
            top.setdefault(self._text(token_id), value)  # the more likely of two tokens with the same text
        return top

    def _included(self, logprobs: Sequence[TokenLogprob]) -> list[TokenLogprob]:
        return [logprob for logprob in logprobs if logprob.token_id not in self._special]

    def _entry(self, token_id: int, logprob: float) -> TopLogprob:
        data = self._bytes.of(token_id)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    def _text(self, token_id: int) -> str:
        data = self._bytes.of(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
