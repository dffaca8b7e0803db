"""The place of conversations, for an app to put its own database."""

from __future__ import annotations

from abc import ABC, abstractmethod

from aiochatstream.conversation import Conversation


class ConversationStore(ABC):
    """Keeps the conversations of users. ``Conversation.to_dict`` and ``from_dict`` make JSON of one and back."""

    @abstractmethod
    async def load(self, user_id: str, name: str) -> Conversation | None:
        """The conversation ``name`` of this user; None where there is none."""

    @abstractmethod
    async def save(self, user_id: str, name: str, conversation: Conversation, *, expected_number: int) -> None:
        """Keep ``conversation``, if what is kept has the turn number ``expected_number`` or there is nothing.

        Raises :class:`~aiochatstream.errors.ConversationChanged` otherwise, and changes nothing then.
        """

    @abstractmethod
    async def forget(self, user_id: str, name: str) -> bool:
        """Keep it no longer; tell whether there was one."""
