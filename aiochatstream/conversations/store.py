"""The interface of conversation stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, Protocol

from aiochatstream.conversations.conversation import Conversation

StopRequest = Literal["stopped", "discarded"]
"""Reason for stopping an answer: a request to stop it, or its conversation is being cleared."""


class Holder(Protocol):
    """A running turn or change that holds a conversation."""

    @property
    def message_id(self) -> str:
        """The holder's own random id."""

    def stop(self, reason: StopRequest) -> None:
        """End soon. No effect after the end."""


class ConversationStore(ABC):
    """Base class of conversation stores, for the database of an application. ``Conversation.to_dict`` and ``from_dict``
    convert to JSON and back.

    A store that several processes share also overrides :meth:`hold` and :meth:`stop`, which do nothing here, so that
    only one process at a time runs a turn of a conversation. Any method may raise
    :class:`~aiochatstream.errors.StoreUnavailable`.
    """

    @abstractmethod
    async def load(self, user_id: str, name: str) -> Conversation | None:
        """Return the conversation ``name`` of this user; None if there is none."""

    @abstractmethod
    async def save(self, user_id: str, name: str, conversation: Conversation, *, expected_number: int) -> None:
        """Save ``conversation`` if the stored one has the turn number ``expected_number``, or none is stored.

        Raise :class:`~aiochatstream.errors.ConversationChanged` otherwise, and change nothing.
        """

    @abstractmethod
    async def forget(self, user_id: str, name: str) -> bool:
        """Delete the turns of a conversation. Return True if there were any.

        The turn number may remain and continue.
        """

    @asynccontextmanager
    async def hold(self, user_id: str, name: str, holder: Holder) -> AsyncIterator[None]:
        """Hold the conversation for ``holder`` in this block: other processes can only load it.

        Wait for another holder at most 2 s, then raise :class:`~aiochatstream.errors.ConversationBusy`.
        """
        yield

    async def stop(self, user_id: str, name: str, reason: StopRequest) -> str | None:
        """Stop the holder in another process, wait at most 2 s for its end, and return its message id.

        Return None if no other process holds the conversation, or the store cannot find out.
        """
        return None
