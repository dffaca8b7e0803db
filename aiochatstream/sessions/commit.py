"""Commit tokens: turns that clients put into their cookies.

A response sets cookies before its answer is known. The last event of a stream therefore carries the turn, encrypted
with the key of the cookies. The client sends it back, and the response to that request sets the cookie. Any worker
process can handle it.
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
"""Seconds until a token expires."""

PURPOSE = b"commit:"
"""First bytes of the encrypted text of a token, so that a cookie cannot be used as one; no cookie begins with them."""

KEYS = {
    "user_id": "user_id",
    "name": "name",
    "number": "number",
    "previous_turn_id": "parent",
    "turn_id": "begun",
    "turn": "turn",
    "replaces": "replaces",
    "context_turns": "told",
}
"""Keys of a token's JSON, by attribute. They stay the same, so that other versions can read the token."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One turn as a change of a conversation.

    user_id, name: the user and the conversation's name.
    number, previous_turn_id: turn number and turn id of the conversation before the turn.
    turn_id: message id of the turn.
    turn: message and answer; None if there is no answer, or no cookie can hold it.
    replaces: number of the newest turns that this turn replaces.
    context_turns: number of turns before this one that were in the prompt.
    """

    user_id: str
    name: str
    number: int
    previous_turn_id: str
    turn_id: str
    turn: Turn | None
    replaces: int
    context_turns: int

    @classmethod
    def of_turn(cls, user_id: str, name: str, loaded: Conversation, conversation: Conversation) -> Commit:
        """Return the turn that changed ``loaded`` to ``conversation``."""
        base = len(conversation.turns) - 1
        replaces, context_turns = len(loaded.turns) - base, base - conversation.first
        turn = conversation.turns[-1]
        return cls(user_id, name, loaded.number, loaded.turn_id, conversation.turn_id, turn, replaces, context_turns)

    @classmethod
    def of_none(cls, user_id: str, name: str, loaded: Conversation, turn_id: str) -> Commit:
        """Return a turn that added no answer to ``loaded``."""
        context_turns = len(loaded.turns) - loaded.first
        return cls(user_id, name, loaded.number, loaded.turn_id, turn_id, None, 0, context_turns)

    def applied_to(self, before: Conversation) -> Conversation:
        """Return ``before``, in which the turn has begun, with the turn at its end."""
        base = before.drop_newest(min(self.replaces, len(before.turns)))
        base = base.starting_at(max(0, len(base.turns) - self.context_turns))
        return base if self.turn is None else base.with_turn(self.turn)

    def seal(self, fernet: Fernet | MultiFernet) -> str:
        """Return the token."""
        values = asdict(self) | {"turn": None if self.turn is None else self.turn.to_dict()}
        data = {KEYS[name]: value for name, value in values.items()}
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        return fernet.encrypt(PURPOSE + zlib.compress(text.encode(errors="surrogatepass"), 9)).decode()

    @classmethod
    def open(cls, token: str, fernet: Fernet | MultiFernet) -> Commit:
        """Return the commit of a token. Raise BadRequest for an invalid or expired token."""
        try:
            sealed = unseal(token, fernet, EXPIRES_SECONDS)
        except (InvalidToken, ValueError):
            sealed = b""
        if not sealed.startswith(PURPOSE):
            raise BadRequest("commit: must be a token that this server created within the last hour.")
        data: dict[str, Any] = json.loads(zlib.decompress(sealed.removeprefix(PURPOSE)))
        try:
            values = {name: data[key] for name, key in KEYS.items()}
            return cls(**{**values, "turn": None if values["turn"] is None else Turn(**values["turn"])})
        except (KeyError, TypeError):
            raise BadRequest("commit: the token was created by another version of the server.") from None
