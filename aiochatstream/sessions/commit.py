"""Commit tokens: a turn on its way into the cookie, by way of the client.

A cookie can be set only before an answer is known. So the stream's last event carries the turn, sealed with the key of
the cookies; the client sends it back at once, and that response sets the cookie, on whichever worker it comes to.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from aiochatstream.conversations.conversation import Conversation, Turn
from aiochatstream.errors import BadRequest
from aiochatstream.sessions.encrypted_cookie import unseal

EXPIRES_SECONDS = 3600
"""How long a token is taken after it was made."""

PURPOSE = b"commit:"
"""Begins what is sealed, so that no cookie is ever taken for a token; no cookie begins with it."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What one turn made of a conversation.

    user_id, name: whose, and which.
    number, parent: the turn number and the message id that the conversation had before.
    begun: the turn's own message id.
    turn: the message and its answer; None where there is none, or no cookie could hold it.
    replaces: how many of the newest turns it takes the place of.
    told: how many of the turns before it the model was told.
    """

    user_id: str
    name: str
    number: int
    parent: str
    begun: str
    turn: Turn | None
    replaces: int
    told: int

    @classmethod
    def of_turn(cls, user_id: str, name: str, loaded: Conversation, conversation: Conversation) -> Commit:
        """The turn that made ``conversation`` of ``loaded``."""
        base = len(conversation.turns) - 1
        replaces, told = len(loaded.turns) - base, base - conversation.first
        turn = conversation.turns[-1]
        return cls(user_id, name, loaded.number, loaded.turn_id, conversation.turn_id, turn, replaces, told)

    @classmethod
    def of_none(cls, user_id: str, name: str, loaded: Conversation, begun: str) -> Commit:
        """A turn that left no answer in ``loaded``."""
        told = len(loaded.turns) - loaded.first
        return cls(user_id, name, loaded.number, loaded.turn_id, begun, None, 0, told)

    def applied_to(self, before: Conversation) -> Conversation:
        """The conversation with the turn, begun already in ``before``."""
        base = before.drop_newest(min(self.replaces, len(before.turns)))
        base = base.starting_at(max(0, len(base.turns) - self.told))
        return base if self.turn is None else base.with_turn(self.turn)

    def seal(self, fernet: Fernet | MultiFernet) -> str:
        """The token."""
        text = json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))
        return fernet.encrypt(PURPOSE + zlib.compress(text.encode(errors="surrogatepass"), 9)).decode()

    @classmethod
    def open(cls, token: str, fernet: Fernet | MultiFernet) -> Commit:
        """What :meth:`seal` sealed. Raises BadRequest for anything else, and for what has expired."""
        try:
            sealed = unseal(token, fernet, EXPIRES_SECONDS)
        except (InvalidToken, ValueError):
            sealed = b""
        if not sealed.startswith(PURPOSE):
            raise BadRequest("commit: is not a token that this server has made within the last hour.")
        data: dict[str, Any] = json.loads(zlib.decompress(sealed.removeprefix(PURPOSE)))
        turn = data["turn"]
        return cls(**{**data, "turn": None if turn is None else Turn(**turn)})
