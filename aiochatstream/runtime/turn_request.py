"""What a request wants of a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.errors import ConversationChanged, NotFound, NothingToContinue, NothingToRegenerate


class Task(NamedTuple):
    """What is to be answered.

    base: the conversation that the answer joins.
    message: what it answers.
    begun: how the answer begins already.
    """

    base: Conversation
    message: str
    begun: str = ""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One of four things: something new, the last message again, an earlier message in other words, or to go on.

    message: what the user says. None answers the last message again.
    edits: the message id of an answer: ``message`` takes the place of what it answers, and it and all after it go.
    continues: an interrupted answer goes on where it stopped; ``message`` is None.
    if_turn: the turn number that the client has seen; None is any.
    """

    message: str | None = None
    edits: str | None = None
    continues: bool = False
    if_turn: int | None = None

    def of(self, conversation: Conversation) -> Task:
        """What this means in ``conversation``.

        Raises ConversationChanged, NotFound, NothingToContinue or NothingToRegenerate.
        """
        check_turn(conversation, self.if_turn)
        last = conversation.turns[-1] if conversation.turns else None
        if self.continues:
            if last is None or last.state != "interrupted":
                raise NothingToContinue("The last answer of this conversation is not an interrupted one.")
            return Task(conversation.without_last(), last.user, last.answer)
        if self.message is None:
            if last is None:
                raise NothingToRegenerate("There is no message in this conversation to answer again.")
            return Task(conversation.without_last(), last.user)
        if self.edits is None:
            return Task(conversation, self.message)
        at = answer_index(conversation, self.edits, "edit_message_id")
        return Task(conversation.drop_newest(len(conversation.turns) - at), self.message)


def check_turn(conversation: Conversation, if_turn: int | None) -> None:
    """Raises ConversationChanged where the client has seen another state of ``conversation``; None is any."""
    if if_turn is not None and if_turn != conversation.number:
        raise ConversationChanged(f"if_turn: the conversation is at turn {conversation.number}, not {if_turn}.")


def answer_index(conversation: Conversation, message_id: str, where: str) -> int:
    """Which turn has the answer ``message_id``. Raises NotFound, in which it is called ``where``."""
    at = conversation.find(message_id)
    if at is None:
        raise NotFound(f"{where}: this conversation has no answer {message_id!r}.")
    return at
