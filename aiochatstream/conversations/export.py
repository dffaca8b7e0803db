"""Conversations as JSON files, with the messages of ``GET /history``."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from aiochatstream.conversations.conversation import MAX_CHARS, MAX_TURNS, AnswerState, Conversation, Turn
from aiochatstream.validation import STRICT, describe

MessageId = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_-]{0,64}$", description="a string of up to 64 of the characters A-Z a-z 0-9 - _")
]


class ExportedMessage(BaseModel):
    """One message. Only answers have ``message_id``, ``state`` and ``thinking``, the model's thoughts."""

    model_config = STRICT

    role: Literal["user", "assistant"] = Field(description="'user' or 'assistant'")
    content: str = Field(description="a string")
    message_id: MessageId = ""
    state: Literal["complete", "interrupted", "running"] = Field(
        default="complete", description="'complete' or 'interrupted'"
    )
    thinking: str = Field(default="", description="a string")


class ExportedConversation(BaseModel):
    """An exported conversation: alternating user messages and answers, and the system prompt, empty if unset."""

    model_config = STRICT

    system: str = Field(default="", description="a string")
    messages: list[ExportedMessage] = Field(
        max_length=2 * MAX_TURNS, description=f"a list of at most {2 * MAX_TURNS} messages"
    )

    @model_validator(mode="after")
    def _turns_are_whole(self) -> ExportedConversation:
        roles = [message.role for message in self.messages]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise ValueError("messages: must alternate between user and assistant")
        if any(message.role == "user" and not message.content.strip() for message in self.messages):
            raise ValueError("messages: the content of user messages must not be empty")
        if sum(len(message.content) + len(message.thinking) for message in self.messages) > MAX_CHARS:
            raise ValueError(f"messages: must have at most {MAX_CHARS} characters in total")
        return self

    @property
    def turns(self) -> int:
        """Number of turns."""
        return len(self.messages) // 2

    @classmethod
    def of(cls, conversation: Conversation, system: str) -> ExportedConversation:
        """Return ``conversation`` as it is exported."""
        messages = []
        for turn in conversation.turns:
            messages.append(ExportedMessage(role="user", content=turn.user))
            thoughts = {"thinking": turn.thinking} if turn.thinking else {}
            messages.append(
                ExportedMessage(
                    role="assistant", content=turn.answer, message_id=turn.message_id, state=turn.state, **thoughts
                )
            )
        return cls(messages=messages, **({"system": system} if system else {}))

    def to_conversation(self) -> Conversation:
        """Return the conversation. Running answers become interrupted ones, and repeated message ids are replaced."""
        turns: list[Turn] = []
        ids: set[str] = set()
        for user, answer in zip(self.messages[::2], self.messages[1::2], strict=True):
            state: AnswerState = "complete" if answer.state == "complete" else "interrupted"
            message_id = answer.message_id or str(uuid.uuid4())
            if message_id in ids:
                message_id = str(uuid.uuid4())
            ids.add(message_id)
            turns.append(Turn(user.content, answer.content, message_id, state, answer.thinking))
        return Conversation(tuple(turns), number=len(turns), turn_id=turns[-1].message_id if turns else "")

    def write(self, file: Path) -> None:
        """Write the conversation to ``file``. Raise OSError."""
        file.write_text(self.model_dump_json(indent=2, exclude_unset=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> ExportedConversation:
        """Read a conversation from ``file``. Raise OSError, and ValueError if it is not valid."""
        data = file.read_bytes()
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise ValueError(describe(error, cls)) from None
