"""Deltas of one answer: its parts, stop strings and finish reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from aiochatstream.engines.base import Delta, FinishReason, TokenLogprob
from aiochatstream.engines.stop_strings import StopStrings
from aiochatstream.engines.transformers.answer_reader import AnswerReader
from aiochatstream.engines.transformers.response_reader import ContentText, Part, Thought


class AnswerDeltas:
    """Converts the tokens of one answer to deltas.

    :param stop: strings that end the answer if they are in its content.
    :param stop_ids: tokens that end the answer if they are in its content.
    :param eos_ids: tokens that end the answer anywhere.
    """

    def __init__(
        self, reader: AnswerReader, stop: tuple[str, ...], stop_ids: Collection[int], eos_ids: Collection[int]
    ) -> None:
        self._reader, self._stop_ids, self._eos_ids = reader, stop_ids, eos_ids
        self._stops = StopStrings(stop)
        self._finish_reason: FinishReason | None = None

    @property
    def finished(self) -> bool:
        """True if the answer has ended."""
        return self._finish_reason is not None

    def step(self, token_id: int, logprobs: tuple[TokenLogprob, ...] = (), *, last: bool = False) -> list[Delta]:
        """Add a token; return one delta for each of its parts, at least one.

        The first delta has the token, the last one the finish reason, if the answer ends.

        :param last: True if the maximum length is reached.
        """
        reader, thinking_tokens = self._reader, self._reader.thinking_tokens
        if token_id in self._eos_ids or (token_id in self._stop_ids and reader.region == "content"):
            parts = reader.end()
            self._finish_reason = "stop"
        else:
            parts = reader.step(token_id)
            if last:
                self._finish_reason = "thinking_length" if reader.in_thought else "length"
                parts = parts + reader.cut_off()
        first, *others = self._deltas(parts) or [Delta()]
        thinking_tokens = reader.thinking_tokens - thinking_tokens
        first = dataclasses.replace(first, token_ids=(token_id,), logprobs=logprobs, thinking_tokens=thinking_tokens)
        deltas = [first, *others]
        deltas[-1] = dataclasses.replace(deltas[-1], finish_reason=self._finish_reason)
        return deltas

    def _deltas(self, parts: Iterable[Part]) -> list[Delta]:
        """Return the deltas of parts, without empty ones. A stop string ends them and sets the finish reason."""
        deltas: list[Delta] = []
        text = ""  # content that follows the last delta
        for part in parts:
            if isinstance(part, ContentText):
                shown, stopped = self._stops.push(part.text)
                text += shown
                if stopped:
                    self._finish_reason = "stop"
                    break
                continue
            if text := text + self._stops.flush():
                deltas.append(Delta(text))
                text = ""
            deltas.append(Delta(thinking=part.text) if isinstance(part, Thought) else Delta(tool_calls=(part,)))
        if self._finish_reason is not None:
            text += self._stops.flush()
        return [*deltas, Delta(text)] if text else deltas
