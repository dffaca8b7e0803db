"""Answers without a model, for work on a page or an app."""

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
from aiochatstream.params import STRICT, GenerationParams, validated

MockType = Literal["round", "echo", "long"]

ANSWERS = (
    "Hello! I am a mock answer, and no model was asked. How can I help you?",
    "こんにちは。これはモデルを使わない、見本の返事です。",
    "The second line of this answer comes after a line break.\nIt is here to show how one looks.",
    "今日はいい天気ですね。散歩に行きましょう。 It is a good day for a walk.",
)

LONG_TEXT = "\n\n".join(
    f"{number}. This paragraph is one of many, so that the page has something to scroll. It says nothing of weight, "
    f"goes on for a while, and ends where the next one begins.\n\n"
    f"段落{number}です。長い文章が少しずつ表示される様子を確かめるために、同じような文がしばらく続きます。"
    for number in range(1, 31)
)

# A Japanese or Chinese character with its marks, or a word; each with the space after it.
CJK = "\u2e80-\u2fff\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003ffff"
MARKS = "\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
PIECE = re.compile(rf"(?:[{CJK}][{MARKS}]*|[^\s{CJK}]+|(?=\s))\s*")

WaitSeconds = Annotated[float, Field(ge=0, le=86_400, description="a number of seconds from 0 to 86400")]


class MockParams(BaseModel):
    """What :class:`ScriptedEngine` is made of."""

    model_config = STRICT

    type: Annotated[MockType, Field(description="'round', 'echo' or 'long'")]
    initial_wait_sec: WaitSeconds
    time_per_token_sec: WaitSeconds
    answers: (
        Annotated[
            Sequence[Annotated[str, Field(min_length=1)]],
            Field(min_length=1, description="a list of one text or more, none of them empty"),
        ]
        | None
    )


class ScriptedEngine(FunctionEngine):
    """Answers as the script says, as slowly as a model: Japanese by the character, other text by the word.

    Such a piece counts as one token for ``max_new_tokens``; stop strings hold, too.

    :param type: ``round`` gives the answers in turn, ``echo`` the user's newest message, ``long`` a text of some
        thousand tokens.
    :param initial_wait_sec: seconds before the first token, 0 to 86400.
    :param time_per_token_sec: seconds between two tokens, 0 to 86400.
    :param answers: the answers of ``round``; None: a few sentences in English and Japanese.
    :param timer: for tests.

    Raises ValueError for a value out of its range.
    """

    def __init__(
        self,
        type: MockType = "round",  # noqa: A002 - chatstream's word for it
        *,
        initial_wait_sec: float = 0.0,
        time_per_token_sec: float = 0.1,
        answers: Sequence[str] | None = None,
        timer: Timer | None = None,
    ) -> None:
        super().__init__(self._answer)
        given = {"type": type, "initial_wait_sec": initial_wait_sec, "time_per_token_sec": time_per_token_sec}
        self._params = validated(MockParams, {**given, "answers": answers})
        if answers is not None and type != "round":
            raise ValueError(f"answers: go with type 'round', not with {type!r}.")
        self._round = cycle(self._params.answers or ANSWERS)
        self._lock = threading.Lock()
        self._timer = timer or Timer()

    def describe(self) -> dict[str, str]:
        return {"model": f"none; mock answers of type {self._params.type}"}

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        due = self._timer.now() + self._params.initial_wait_sec
        with closing(super().generate(prompt, params)) as answer:
            for delta in answer:
                if delta.token_ids:
                    yield from self._timer.until(due)
                    due += self._params.time_per_token_sec
                yield delta

    def _answer(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        if self._params.type == "echo":
            return pieces(next(message["content"] for message in reversed(messages) if message["role"] == "user"))
        if self._params.type == "long":
            return pieces(LONG_TEXT)
        with self._lock:
            return pieces(next(self._round))


def pieces(text: str) -> Iterator[str]:
    """``text`` as it is to appear, piece by piece, and nothing left out."""
    return (match[0] for match in PIECE.finditer(text))
