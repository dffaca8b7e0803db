"""How likely each token was, in the two shapes that OpenAI's API has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiochatstream.engines import TokenBytes, TokenLogprob
from aiochatstream.web.openai.answers import ContentLogprob, TextLogprobs, TopLogprob


class LogprobWriter:
    """Tells the tokens of answers.

    Special tokens, which have no text (the end of the answer, mostly), are left out.

    :param tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._bytes = TokenBytes(tokenizer)
        self._special = frozenset(tokenizer.all_special_ids)

    def of_chat(self, logprobs: Sequence[TokenLogprob]) -> list[ContentLogprob]:
        """As chat completions and responses have them."""
        return [
            {**self._one(one.token_id, one.logprob), "top_logprobs": [self._one(*top) for top in one.top]}
            for one in self._told(logprobs)
        ]

    def of_text(self, logprobs: Sequence[TokenLogprob], offset: int) -> TextLogprobs:
        """As completions have them.

        :param offset: characters of the answer (of what was echoed, too) before the first of these tokens.
        """
        told = self._told(logprobs)
        tokens = [self._text(one.token_id) for one in told]
        offsets = [offset]
        for token in tokens:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in told],
            "top_logprobs": [{self._text(id_): logprob for id_, logprob in one.top} for one in told],
            "text_offset": offsets[:-1],
        }

    def _told(self, logprobs: Sequence[TokenLogprob]) -> list[TokenLogprob]:
        return [one for one in logprobs if one.token_id not in self._special]

    def _one(self, token_id: int, logprob: float) -> TopLogprob:
        data = self._bytes.of(token_id)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    def _text(self, token_id: int) -> str:
        return self._bytes.of(token_id).decode(errors="replace")
