"""Requests for a turn: a new message, a regeneration, an edit or a continuation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.errors import ConversationChanged, NotFound, NothingToContinue, NothingToRegenerate


class TurnInput(NamedTuple):
    """Input of a turn.

    base: conversation to which message and answer are added.
    message: user message to answer.
    prefix: text that the answer begins with; not empty for a continuation.
    prefix_thinking: thoughts before that text.
    """

    base: Conversation
    message: str
    prefix: str = ""
    prefix_thinking: str = ""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One of: a new message, a regeneration, an edit of an earlier message, or a continuation.

    message: user message; None answers the last message again.
    edits: message id of an answer. ``message`` replaces its user message; that turn and all later ones are dropped.
    continues: continue the interrupted last answer; ``message`` is None.
    if_turn: turn number that the client has seen; None accepts any.
    """

    message: str | None = None
    edits: str | None = None
    continues: bool = False
    if_turn: int | None = None

    def resolve(self, conversation: Conversation) -> TurnInput:
        """Return the input of this turn in ``conversation``.

        Raise ConversationChanged, NotFound, NothingToContinue or NothingToRegenerate.
        """
        check_turn(conversation, self.if_turn)
        last = conversation.turns[-1] if conversation.turns else None
        if self.continues:
            if last is None or last.state != "interrupted":
                raise NothingToContinue("The last answer of this conversation was not interrupted.")
            return TurnInput(conversation.without_last(), last.user, last.answer, last.thinking)
        if self.message is None:
            if last is None:
                raise NothingToRegenerate("This conversation has no message to answer again.")
            return TurnInput(conversation.without_last(), last.user)
        if self.edits is None:
            return TurnInput(conversation, self.message)
        index = answer_index(conversation, self.edits, "edit_message_id")
        return TurnInput(conversation.drop_newest(len(conversation.turns) - index), self.message)


def check_turn(conversation: Conversation, if_turn: int | None) -> None:
    """Raise ConversationChanged unless ``conversation`` is at turn ``if_turn``; None accepts any."""
    if if_turn is not None and if_turn != conversation.number:
        raise ConversationChanged(f"if_turn: the conversation is at turn {conversation.number}, not {if_turn}.")


def answer_index(conversation: Conversation, message_id: str, field: str) -> int:
    """Return the index of the turn with the answer ``message_id``. Raise NotFound, which names ``field``."""
    index = conversation.find(message_id)
    if index is None:
        raise NotFound(f"{field}: this conversation has no answer {message_id!r}.")
    return index
