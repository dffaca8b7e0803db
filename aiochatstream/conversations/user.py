"""Users by id, and their conversations in a store."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.random_ids import is_random_id
from aiochatstream.conversations.store import ConversationStore, Holder, StopRequest


class SaveResult(NamedTuple):
    """Result of saving a conversation.

    dropped_turns: number of turns dropped for lack of space, also from other conversations of the user.
    stored: False if the newest turn is larger than a cookie can hold; the conversation is as before.
    commit: token with which the client puts the turn into its cookie; None if that is not needed.
    """

    conversation: Conversation
    dropped_turns: int = 0
    stored: bool = True
    commit: str | None = None


def account_id(account: str) -> str:
    """Return the user id of the application's ``account``: the same text, unless a session could have that id.

    A session in an unencrypted cookie may contain any random id, so no account has one.
    """
    return f"account:{account}" if is_random_id(account) or account.startswith("account:") else account


class User:
    """A user by id, with conversations in ``store``.

    :param namespace: separates the conversations of several ChatStreams in the same store and session.
    """

    def __init__(self, user_id: str, store: ConversationStore, namespace: str = "") -> None:
        self._id, self._store = user_id, store
        self._namespace = namespace

    @property
    def id(self) -> str:
        """Id of the user in the store."""
        return self._id

    @property
    def owner(self) -> str:
        """Owner of the user's prompts, see :class:`~aiochatstream.Prompt`."""
        return f"program:{self.id}"

    @property
    def owners(self) -> list[str]:
        """:attr:`owner`, and the user's earlier owners."""
        return [self.owner]

    async def load(self, name: str) -> Conversation:
        """Return the saved conversation ``name``; an empty one if there is none."""
        return await self._store.load(self.id, self._full(name)) or Conversation()

    async def accept_turn(self, name: str, conversation: Conversation) -> None:
        """Record the beginning of a turn. ``conversation`` is the loaded conversation with the turn begun."""

    async def save(self, name: str, conversation: Conversation, *, loaded: Conversation) -> SaveResult:
        """Save ``conversation``, the result of a turn in ``loaded``. The response may have begun.

        Raise the errors of :meth:`ConversationStore.save`.
        """
        await self._store.save(self.id, self._full(name), conversation, expected_number=loaded.number)
        return SaveResult(conversation)

    async def save_unanswered(self, name: str, conversation: Conversation, *, loaded: Conversation) -> SaveResult:
        """Record the end of a turn without an answer. ``conversation`` is ``loaded`` after its beginning."""
        return SaveResult(loaded)

    async def rewrite(self, name: str, conversation: Conversation, *, loaded: Conversation) -> SaveResult:
        """Save ``conversation``, the result of a change of ``loaded`` without an answer. The response has not begun.

        Raise the errors of :meth:`ConversationStore.save`.
        """
        return await self.save(name, conversation, loaded=loaded)

    async def forget(self, name: str) -> bool:
        """Delete the conversation ``name``. Return True if it had turns."""
        return await self._store.forget(self.id, self._full(name))

    def hold(self, name: str, holder: Holder) -> AbstractAsyncContextManager[None]:
        """Hold the conversation ``name`` for ``holder`` (see :meth:`ConversationStore.hold`)."""
        return self._store.hold(self.id, self._full(name), holder)

    async def stop_elsewhere(self, name: str, reason: StopRequest) -> str | None:
        """Stop a turn of the conversation in another process (see :meth:`ConversationStore.stop`)."""
        return await self._store.stop(self.id, self._full(name), reason)

    def _full(self, name: str) -> str:
        """Return the name in the store and in the session, with the namespace."""
        return f"{self._namespace}/{name}" if self._namespace else name
