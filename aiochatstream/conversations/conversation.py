"""What was said: the turns of one conversation, as plain data that goes to JSON and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

AnswerState = Literal["complete", "interrupted"]

MAX_CHARS = 1 << 20
"""What one conversation may hold, so that nobody's fills a store or holds the event loop while it is written."""

MAX_TURNS = 2000
"""How many turns that may be, for the same reason."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A user message and its answer.

    state: ``complete``, or ``interrupted`` where the client stopped it or left: the text is what there was so far.
    """

    user: str
    answer: str
    message_id: str
    state: AnswerState = "complete"


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation. Never changed in place: each turn gives a new one.

    turns: oldest first.
    number: counts every turn that was begun, also those that left no answer. It only ever grows.
    begun: message id of the turn that was begun last.
    first: index of the oldest turn that the model is still told. It stays where it is for many turns, so that
        the start of the prompt stays the same.

    Number and begun together name one state of it: where both are equal, nothing was changed in between.
    """

    turns: tuple[Turn, ...] = ()
    number: int = 0
    begun: str = ""
    first: int = 0

    def begin(self, message_id: str) -> Conversation:
        """The conversation with one more turn begun."""
        return replace(self, number=self.number + 1, begun=message_id)

    def without_last(self) -> Conversation:
        """The conversation as it was before its last answer (to answer that message again)."""
        return self.drop_newest(1)

    def with_turn(self, turn: Turn) -> Conversation:
        """The conversation with ``turn`` as its newest. Over :data:`MAX_CHARS` or :data:`MAX_TURNS`, the oldest go."""
        grown = replace(self, turns=(*self.turns, turn))
        grown = grown.drop_oldest(max(0, len(grown.turns) - MAX_TURNS))
        excess = sum(len(old.user) + len(old.answer) for old in grown.turns) - MAX_CHARS
        while excess > 0 and len(grown.turns) > 1:
            excess -= len(grown.turns[0].user) + len(grown.turns[0].answer)
            grown = grown.drop_oldest()
        return grown

    def with_turns_of(self, other: Conversation) -> Conversation:
        """The conversation with the turns of ``other`` in place of its own."""
        return replace(self, turns=other.turns, first=0)

    def starting_at(self, first: int) -> Conversation:
        """The conversation of which the model is told from turn ``first`` on."""
        return replace(self, first=first)

    def drop_oldest(self, count: int = 1) -> Conversation:
        """The conversation without its ``count`` oldest turns."""
        return replace(self, turns=self.turns[count:], first=max(0, self.first - count))

    def drop_newest(self, count: int) -> Conversation:
        """The conversation without its ``count`` newest turns."""
        turns = self.turns[: len(self.turns) - count]
        return replace(self, turns=turns, first=min(self.first, len(turns)))

    def find(self, message_id: str) -> int | None:
        """Which turn has the answer ``message_id``; None where there is none."""
        return next((at for at, turn in enumerate(self.turns) if turn.message_id == message_id), None)

    def without(self, at: int) -> Conversation:
        """The conversation without turn ``at``."""
        turns = (*self.turns[:at], *self.turns[at + 1 :])
        return replace(self, turns=turns, first=self.first - (at < self.first))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        turns = [  # a tenth of the time that dataclasses.asdict takes
            {"user": turn.user, "answer": turn.answer, "message_id": turn.message_id, "state": turn.state}
            for turn in self.turns
        ]
        return {"turns": turns, "number": self.number, "begun": self.begun, "first": self.first}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Conversation:
        """The conversation that :meth:`to_dict` told. Raises KeyError or TypeError on anything else."""
        return cls(**{**data, "turns": tuple(Turn(**turn) for turn in data["turns"])})
