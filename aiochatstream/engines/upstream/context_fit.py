"""Fitting conversations to the context of an upstream whose tokenizer is unknown."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Message = dict[str, str]

ASCII_CHARS_PER_TOKEN = 4.0
"""Average for English text. Other characters count as one token each."""

MESSAGE_TOKENS = 5
"""Average tokens of a chat template around a message."""

PRIOR_TOKENS = 200.0
"""Weight of the first guess, as tokens of prompts."""

DECAY = 0.9
"""Weight of earlier prompts each time another length is reported."""

NEAR_LIMIT = 0.75
"""Share of the room from which the estimate is replaced by the server's own count, if the server can count."""

STEP_SHARE = 0.25
"""Turns are dropped in steps of this share of the room: the beginning of the prompt then stays for many turns, and with
it the server's cache."""


class TokenEstimate:
    """Estimate of the length of messages in tokens, corrected by the lengths that servers report."""

    def __init__(self) -> None:
        self._tokens = self._guesses = PRIOR_TOKENS

    def __call__(self, messages: Sequence[Message]) -> int:
        """Return the estimated number of tokens."""
        return math.ceil(_guess(messages) * self._tokens / self._guesses)

    def learn(self, messages: Sequence[Message], tokens: int) -> None:
        """Use the reported length of messages to correct later estimates."""
        if tokens > 0:
            self._tokens = DECAY * self._tokens + tokens
            self._guesses = DECAY * self._guesses + _guess(messages)


def _guess(messages: Sequence[Message]) -> float:
    tokens = 0.0
    for message in messages:
        for text in (message["content"], message.get("reasoning_content", "")):
            others = 0 if text.isascii() else sum(char > "\x7f" for char in text)
            tokens += others + (len(text) - others) / ASCII_CHARS_PER_TOKEN
        tokens += MESSAGE_TOKENS
    return tokens


def drop_oldest_turns(messages: list[Message], lengths: Sequence[float], room: float) -> list[Message]:
    """Return ``messages`` without the oldest turns that exceed ``room``. The newest message always remains.

    A turn is a user's message and its answer. The system message remains, as does an answer that is being continued.

    :param lengths: length of each message, in tokens.
    :param room: tokens that the prompt may have.
    """
    excess = sum(lengths) - room
    if excess <= 0:
        return messages
    first = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    newest = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=first)
    step = max(1.0, STEP_SHARE * room)
    target = math.ceil(excess / step) * step
    starts = [index for index in range(first + 1, newest + 1) if messages[index]["role"] == "user"]
    sums = [0.0, *itertools.accumulate(lengths)]
    start = next((index for index in starts if sums[index] - sums[first] >= target), newest if starts else first)
    return [*messages[:first], *messages[start:]]
