"""Conversations as plain data, convertible to JSON and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

AnswerState = Literal["complete", "interrupted"]

MAX_CHARS = 1 << 20
"""Maximum characters of one conversation: saving a larger one would block the event loop."""

MAX_TURNS = 2000
"""Maximum turns of one conversation, for the same reason."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A user message and its answer.

    state: ``complete``, or ``interrupted`` if the client stopped the answer or disconnected: the text ends there.
    thinking: the model's thoughts before the answer; empty if there are none or they are not stored.
    """

    user: str
    answer: str
    message_id: str
    state: AnswerState = "complete"
    thinking: str = ""

    @property
    def chars(self) -> int:
        """Characters of all texts."""
        return len(self.user) + len(self.answer) + len(self.thinking)

    def to_dict(self) -> dict[str, Any]:
        """Return the turn as plain data for JSON; without the key ``thinking`` if there are no thoughts."""
        data = {"user": self.user, "answer": self.answer, "message_id": self.message_id, "state": self.state}
        if self.thinking:
            data["thinking"] = self.thinking
        return data  # ten times faster than dataclasses.asdict


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation. Immutable: each change returns a new one.

    turns: oldest first.
    number: number of turns that have begun, including turns without an answer. It only increases.
    turn_id: message id of the turn that began last.
    first: index of the oldest turn in the prompt. It stays the same for many turns, so that the beginning of the
        prompt does, and its cached keys and values are reused.

    Number and turn id identify one state of the conversation: if both are equal, nothing has changed.
    """

    turns: tuple[Turn, ...] = ()
    number: int = 0
    turn_id: str = ""
    first: int = 0

    def begin(self, message_id: str) -> Conversation:
        """Return the conversation at the beginning of a new turn."""
        return replace(self, number=self.number + 1, turn_id=message_id)

    def without_last(self) -> Conversation:
        """Return the conversation without its last turn."""
        return self.drop_newest(1)

    def with_turn(self, turn: Turn) -> Conversation:
        """Return the conversation with ``turn`` as its newest; the oldest are dropped above :data:`MAX_CHARS` or
        :data:`MAX_TURNS`.
        """
        grown = replace(self, turns=(*self.turns, turn))
        grown = grown.drop_oldest(max(0, len(grown.turns) - MAX_TURNS))
        excess = sum(old.chars for old in grown.turns) - MAX_CHARS
        while excess > 0 and len(grown.turns) > 1:
            excess -= grown.turns[0].chars
            grown = grown.drop_oldest()
        return grown

    def with_turns_of(self, other: Conversation) -> Conversation:
        """Return the conversation with its turns replaced by the turns of ``other``."""
        return replace(self, turns=other.turns, first=0)

    def without_thoughts(self) -> Conversation:
        """Return the conversation without the thoughts of its turns."""
        if not any(turn.thinking for turn in self.turns):
            return self
        return replace(self, turns=tuple(replace(turn, thinking="") for turn in self.turns))

    def starting_at(self, first: int) -> Conversation:
        """Return the conversation with a prompt that begins at turn ``first``."""
        return replace(self, first=first)

    def drop_oldest(self, count: int = 1) -> Conversation:
        """Return the conversation without its ``count`` oldest turns."""
        return replace(self, turns=self.turns[count:], first=max(0, self.first - count))

    def drop_newest(self, count: int) -> Conversation:
        """Return the conversation without its ``count`` newest turns."""
        turns = self.turns[: len(self.turns) - count]
        return replace(self, turns=turns, first=min(self.first, len(turns)))

    def find(self, message_id: str) -> int | None:
        """Return the index of the turn with the answer ``message_id``; None if there is none."""
        return next((index for index, turn in enumerate(self.turns) if turn.message_id == message_id), None)

    def without(self, index: int) -> Conversation:
        """Return the conversation without the turn at ``index``."""
        turns = (*self.turns[:index], *self.turns[index + 1 :])
        return replace(self, turns=turns, first=self.first - (index < self.first))

    def to_dict(self) -> dict[str, Any]:
        """Return the conversation as plain data for JSON. The key ``begun`` holds :attr:`turn_id`."""
        return {
            "turns": [turn.to_dict() for turn in self.turns],
            "number": self.number,
            "begun": self.turn_id,
            "first": self.first,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Conversation:
        """Return the conversation of :meth:`to_dict`. Raise KeyError or TypeError for other data."""
        turns = tuple(Turn(**turn) for turn in data["turns"])
        return cls(turns, number=data["number"], turn_id=data["begun"], first=data["first"])
