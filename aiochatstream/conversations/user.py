"""The user behind a conversation, by name."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.random_ids import is_random_id
from aiochatstream.conversations.store import ConversationStore, Holder, StopRequest


class SaveResult(NamedTuple):
    """What became of a conversation that was to be kept.

    dropped_turns: how many turns there was no more room for, this user's other conversations included.
    stored: whether the newest turn is there. False: no cookie can hold it, and the conversation is as before.
    commit: a token with which the client itself puts the turn into its cookie; None where that is not needed.
    """

    conversation: Conversation
    dropped_turns: int = 0
    stored: bool = True
    commit: str | None = None


def account_id(account: str) -> str:
    """Return the id of the user that an app calls ``account``: the same text, unless a session could have it.

    A session in an open cookie may hold any random id, so none of them is an account's.
    """
    return f"account:{account}" if is_random_id(account) or account.startswith("account:") else account


class User:
    """A user by name, whose conversations live in ``store``.

    :param namespace: keeps apart what several ChatStreams have in the same store and in the same session.
    """

    def __init__(self, user_id: str, store: ConversationStore, namespace: str = "") -> None:
        self._id, self._store = user_id, store
        self._namespace = namespace

    @property
    def id(self) -> str:
        """What the store knows the user by."""
        return self._id

    @property
    def owner(self) -> str:
        """The owner of this user's prompts, see :class:`~aiochatstream.engines.Prompt`."""
        return f"program:{self.id}"

    @property
    def owners(self) -> list[str]:
        """:attr:`owner`, and those that the user had before."""
        return [self.owner]

    async def load(self, name: str) -> Conversation:
        """The conversation ``name`` as it was last kept; an empty one where there is none."""
        return await self._store.load(self.id, self._full(name)) or Conversation()

    async def accept_turn(self, name: str, conversation: Conversation) -> None:
        """A turn was accepted, which made ``conversation`` of what was loaded."""

    async def save(self, name: str, conversation: Conversation, *, loaded: Conversation) -> SaveResult:
        """Keep ``conversation``, which a turn has made of ``loaded``. May come after the response has begun.

        Raises as :meth:`ConversationStore.save`.
        """
        await self._store.save(self.id, self._full(name), conversation, expected_number=loaded.number)
        return SaveResult(conversation)

    async def leave(self, name: str, begun: Conversation, *, loaded: Conversation) -> SaveResult:
        """A turn, ``begun`` from what was loaded, has ended without an answer: say what stays."""
        return SaveResult(loaded)

    async def rewrite(self, name: str, conversation: Conversation, *, loaded: Conversation) -> SaveResult:
        """Keep ``conversation``, which was made of ``loaded`` without an answer. The response must not have begun.

        Raises as :meth:`ConversationStore.save`.
        """
        return await self.save(name, conversation, loaded=loaded)

    async def forget(self, name: str) -> bool:
        """Drop the conversation ``name``; tell whether there was something in it."""
        return await self._store.forget(self.id, self._full(name))

    def hold(self, name: str, holder: Holder) -> AbstractAsyncContextManager[None]:
        """Have the conversation ``name`` for ``holder`` alone (see :meth:`ConversationStore.hold`)."""
        return self._store.hold(self.id, self._full(name), holder)

    async def stop_elsewhere(self, name: str, reason: StopRequest) -> str | None:
        """Stop the turn that another process has of it (see :meth:`ConversationStore.stop`)."""
        return await self._store.stop(self.id, self._full(name), reason)

    def _full(self, name: str) -> str:
        """What goes by ``name`` here, in the store and in the session."""
        return f"{self._namespace}/{name}" if self._namespace else name
