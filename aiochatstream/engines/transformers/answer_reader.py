"""Readers of an answer's tokens: their text, and its division into thoughts, content and tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from aiochatstream.engines.transformers.detokenizing import Detokenizer
from aiochatstream.engines.transformers.response_reader import ContentText, Part, Region, ResponseReader, Thought


class AnswerReader(Protocol):
    """Reader of the tokens of one answer.

    region: region of the next token.
    in_thought: True if no content and no call has followed the last thought.
    thinking_tokens: number of tokens of thoughts so far, including their marks.
    """

    @property
    def region(self) -> Region: ...

    @property
    def in_thought(self) -> bool: ...

    @property
    def thinking_tokens(self) -> int: ...

    def step(self, token_id: int) -> list[Part]:
        """Add a token; return the parts of the answer that later tokens cannot change."""

    def end(self) -> list[Part]:
        """End the answer at a token that ends it; return the last parts."""

    def cut_off(self) -> list[Part]:
        """End the answer at its maximum length; return the last parts, without an incomplete character."""


class PlainReader:
    """Reader of an answer that is all content. Special tokens have no text."""

    region: Region = "content"
    in_thought = False
    thinking_tokens = 0

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer

    def step(self, token_id: int) -> list[Part]:
        return [ContentText(self._detokenizer.step(token_id))]

    def end(self) -> list[Part]:
        return [ContentText(self._detokenizer.end())]

    def cut_off(self) -> list[Part]:
        return [ContentText(self._detokenizer.end(cut_off=True))]


class TemplateReader:
    """Reader of an answer whose response template marks thoughts and tool calls.

    :param control_tokens: texts of the vocabulary's control tokens, by id.
    """

    def __init__(self, reader: ResponseReader, detokenizer: Detokenizer, control_tokens: Mapping[int, str]) -> None:
        self._reader, self._detokenizer, self._control_tokens = reader, detokenizer, control_tokens
        self.thinking_tokens = 0
        self.in_thought = reader.region == "thinking"

    @property
    def region(self) -> Region:
        return self._reader.region

    def step(self, token_id: int) -> list[Part]:
        name = self._control_tokens.get(token_id)
        if name is None:
            parts = self._reader.feed(self._detokenizer.step(token_id))
        else:
            parts = self._reader.feed(self._detokenizer.mark(token_id, name))
            parts += self._reader.feed(name, control=True)
        if self.in_thought or self.region == "thinking":
            self.thinking_tokens += 1
        if self.region != "other":  # the marks between a thought and the content belong to the thought
            self.in_thought = self.region == "thinking"
        return parts

    def end(self) -> list[Part]:
        parts = self._reader.feed(self._detokenizer.end())
        return parts + self._reader.close(cut_off=False)

    def cut_off(self) -> list[Part]:
        parts = self._reader.feed(self._detokenizer.end(cut_off=True))
        parts += self._reader.close(cut_off=True)
        if self.in_thought:  # incomplete marks between the thought and the content
            return [Thought(part.text) for part in parts]
        return parts
