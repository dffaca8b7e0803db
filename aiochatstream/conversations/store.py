"""The place of conversations, for an app to put its own database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, Protocol

from aiochatstream.conversations.conversation import Conversation

StopRequest = Literal["stopped", "discarded"]
"""Why a running answer is to stop: someone asked for it; the conversation is being forgotten."""


class Holder(Protocol):
    """Who holds a conversation: a turn under way, or a change that is being made."""

    @property
    def message_id(self) -> str:
        """A random id of its own."""

    def stop(self, reason: StopRequest) -> None:
        """Come to an end soon. Without effect once it has ended."""


class ConversationStore(ABC):
    """Keeps the conversations of users. ``Conversation.to_dict`` and ``from_dict`` make JSON of one and back.

    One that several processes share can also keep their turns apart: :meth:`hold` and :meth:`stop`, which do nothing
    unless they are overridden. Any method may raise :class:`~aiochatstream.errors.StoreUnavailable`.
    """

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
        """Keep no turn of it any longer; tell whether there was one. Its number may stay, and go on."""

    @asynccontextmanager
    async def hold(self, user_id: str, name: str, holder: Holder) -> AsyncIterator[None]:
        """In this block, ``holder`` has the conversation alone: no other process does anything with it but load it.

        Waits for another holder at most 2 s, then raises :class:`~aiochatstream.errors.ConversationBusy`.
        """
        yield

    async def stop(self, user_id: str, name: str, reason: StopRequest) -> str | None:
        """Have the holder in another process stop, wait for its end at most 2 s, and return its message id.

        None where there is none, or none is known of.
        """
        return None
