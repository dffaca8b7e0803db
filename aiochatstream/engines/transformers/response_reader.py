"""Incremental reading of a model's response: thoughts, content and tool calls, by a response template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiochatstream.engines.base import ToolCall

Region = Literal["thinking", "content", "call", "other"]
"""Region of a response. ``other`` is outside of all regions, if the template marks where content begins (Harmony)."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the response's content."""

    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """A piece of a thought."""

    text: str


Part = Text | Thinking | ToolCall
"""A piece of a response."""


class ResponseTemplate:
    """A compiled response template. One serves all responses of a model.

    open_thinking: text that begins a thought; None if the template has no thoughts or no fixed text begins them.
    close_thinking: text that ends a thought and begins the content; None if no known text does.
    """

    open_thinking: str | None = None
    close_thinking: str | None = None


def load_response_template(
    spec: Mapping[str, Any], control_tokens: Collection[str] = (), special_tokens: Collection[str] = ()
) -> ResponseTemplate:
    """Return the compiled form of a response template in transformers' format.

    :param control_tokens: texts of the vocabulary's added tokens.
    :param special_tokens: those of ``control_tokens`` that are not shown, unless a mark of the template contains them.

    Raise ValueError, with the name of the field, if the template is invalid.
    """
    return ResponseTemplate()


class ResponseReader:
    """Reader of one response.

    :param prefix: text of the prompt with its control tokens. The generation prompt may begin a thought.
    :param tools: functions that the model may call, as in OpenAI's API. Without any, calls are content.
    """

    def __init__(self, template: ResponseTemplate, prefix: str = "", tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._template = template

    @property
    def region(self) -> Region:
        """Region of the text that follows."""
        return "content"

    def feed(self, text: str, *, control: bool = False) -> list[Part]:
        """Read generated text; return the parts that are certain.

        :param control: ``text`` is a control token of the vocabulary. Other text never is one, even if it looks alike.
        """
        return [Text(text)] if text else []

    def close(self, *, cut_off: bool) -> list[Part]:
        """End the response; return the remaining parts.

        :param cut_off: the model did not end the response itself: a call without its end is content.
        """
        return []
