"""How likely each token was, in the two shapes that OpenAI's API has."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from aiochatstream.engines import TokenBytes, TokenLogprob
from aiochatstream.web.openai.response_models import ContentLogprob, TextLogprobs, TopLogprob


class Offsets:
    """Offsets of the tokens of one answer in its text, in characters. A token may be only a part of one.

    :param before: characters of the tokens that are not in the text: a BOS, or the space before a first word.
    """

    def __init__(self, before: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = -before

    def next(self, data: bytes) -> int:
        """Where the next token begins, which stands for ``data``."""
        begun, before = self._decoder.getstate()[0], self._characters
        self._characters += len(self._decoder.decode(data))
        return before + (bool(begun and data) and not _goes_on(begun, data[:1]))


def _goes_on(begun: bytes, byte: bytes) -> bool:
    """Return whether ``byte`` may follow ``begun``, a part of a character."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(begun + byte)
    except UnicodeDecodeError:
        return False
    return True


class LogprobWriter:
    """Tells the tokens of answers.

    Special tokens, which have no text (the end of the answer, mostly), are left out, unless all tokens are told: with
    those of the prompt, where programs count on one entry a token.

    :param tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any, *, all_tokens: bool = False) -> None:
        self._bytes = TokenBytes(tokenizer)
        self._special = frozenset() if all_tokens else frozenset(tokenizer.all_special_ids)

    def before(self, text: str, ids: Sequence[int]) -> int:
        """Return the number of characters of the tokens ``ids`` before ``text``, their source or their text."""
        whole = b"".join(map(self._bytes.of, ids)).decode(errors="replace")
        return len(whole) - len(text) if whole.endswith(text) else max(0, whole.find(text))

    def of_chat(self, logprobs: Sequence[TokenLogprob]) -> list[ContentLogprob]:
        """As chat completions and responses have them."""
        return [
            {**self._one(one.token_id, one.logprob), "top_logprobs": [self._one(*top) for top in one.top]}
            for one in self._told(logprobs)
        ]

    def of_text(self, logprobs: Sequence[TokenLogprob], offsets: Offsets) -> TextLogprobs:
        """As completions have them: the token itself is among the likeliest ones, and parts of characters are bytes."""
        told = self._told(logprobs)
        return {
            "tokens": [self._text(one.token_id) for one in told],
            "token_logprobs": [one.logprob for one in told],
            "top_logprobs": [self._top(one) for one in told],
            "text_offset": [max(0, offsets.next(self._bytes.of(one.token_id))) for one in told],
        }

    def _top(self, logprob: TokenLogprob) -> dict[str, float]:
        if not logprob.top:
            return {}
        top: dict[str, float] = {}
        for id_, value in (*logprob.top, (logprob.token_id, logprob.logprob)):
            top.setdefault(self._text(id_), value)  # of two tokens with one text, the likelier
        return top

    def _told(self, logprobs: Sequence[TokenLogprob]) -> list[TokenLogprob]:
        return [one for one in logprobs if one.token_id not in self._special]

    def _one(self, token_id: int, logprob: float) -> TopLogprob:
        data = self._bytes.of(token_id)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    def _text(self, token_id: int) -> str:
        data = self._bytes.of(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
