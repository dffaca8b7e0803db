"""Mock answers without a model, for the development of a page or an app."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import cycle
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from aiochatstream.engines.base import Delta, Prompt
from aiochatstream.engines.function import FunctionEngine
from aiochatstream.engines.timer import Timer
from aiochatstream.params import GenerationParams
from aiochatstream.validation import STRICT, validated

MockType = Literal["round", "echo", "long"]

ANSWERS = (
    "Hello! I am a mock answer without a model. How can I help you?",
    "こんにちは。これはモデルを使わない、見本の返事です。",
    "This answer has two lines.\nThe second one follows a line break.",
    "今日はいい天気ですね。散歩に行きましょう。 It is a good day for a walk.",
)

LONG_TEXT = "\n\n".join(
    f"{number}. This is one of many paragraphs, so that there is something to scroll. It contains nothing important, "
    f"continues for a while and ends before the next one.\n\n"
    f"段落{number}です。長い文章が少しずつ表示される様子を確かめるために、同じような文がしばらく続きます。"
    for number in range(1, 31)
)

# A Japanese or Chinese character with its combining marks, or a word; each with the whitespace after it.
CJK = "\u2e80-\u2fff\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003ffff"
MARKS = "\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
MOCK_TOKEN = re.compile(rf"(?:[{CJK}][{MARKS}]*|[^\s{CJK}]+|(?=\s))\s*")

WaitSeconds = Annotated[float, Field(ge=0, le=86_400, description="a number of seconds from 0 to 86400")]


class MockParams(BaseModel):
    """Options of :class:`ScriptedEngine`."""

    model_config = STRICT

    type: Annotated[MockType, Field(description="'round', 'echo' or 'long'")]
    initial_wait_sec: WaitSeconds
    time_per_token_sec: WaitSeconds
    answers: (
        Annotated[
            Sequence[Annotated[str, Field(min_length=1)]],
            Field(min_length=1, description="a list of one or more non-empty texts"),
        ]
        | None
    )


class ScriptedEngine(FunctionEngine):
    """Streams predefined answers at the speed of a model.

    A token is one Japanese or Chinese character, or one word of other text. ``max_new_tokens`` and stop strings apply.

    :param type: ``round`` cycles through the answers, ``echo`` repeats the user's newest message, ``long`` is a text of
        some thousand tokens.
    :param initial_wait_sec: seconds before the first token, 0 to 86400.
    :param time_per_token_sec: seconds between two tokens, 0 to 86400.
    :param answers: answers of ``round``; None for a few sentences in English and Japanese.
    :param timer: for tests.

    Raises ValueError for a value out of range.
    """

    def __init__(
        self,
        type: MockType = "round",  # noqa: A002 - chatstream's name for it
        *,
        initial_wait_sec: float = 0.0,
        time_per_token_sec: float = 0.1,
        answers: Sequence[str] | None = None,
        timer: Timer | None = None,
    ) -> None:
        super().__init__(self._answer)
        times = {"initial_wait_sec": initial_wait_sec, "time_per_token_sec": time_per_token_sec}
        self._params = validated(MockParams, {"type": type, **times, "answers": answers})
        if answers is not None and type != "round":
            raise ValueError(f"answers: must be None for type {type!r}; only 'round' uses them.")
        self._round = cycle(self._params.answers or ANSWERS)
        self._lock = threading.Lock()
        self._timer = timer or Timer()

    def describe(self) -> dict[str, str]:
        return {"model": f"none; mock answers of type {self._params.type}"}

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        due = self._timer.now() + self._params.initial_wait_sec
        with closing(super().generate(prompt, params)) as answer:
            for delta in answer:
                if delta.tokens:
                    yield from self._timer.wait_until(due)
                    due += self._params.time_per_token_sec
                yield delta

    def _answer(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        if self._params.type == "echo":
            return split_tokens(next(message["content"] for message in reversed(messages) if message["role"] == "user"))
        if self._params.type == "long":
            return split_tokens(LONG_TEXT)
        with self._lock:
            return split_tokens(next(self._round))


def split_tokens(text: str) -> Iterator[str]:
    """Yield the mock tokens of ``text``; joined, they are the whole text."""
    return (match[0] for match in MOCK_TOKEN.finditer(text))
