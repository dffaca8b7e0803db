"""Conversations in an encrypted cookie.

Thoughts are not stored: they would leave too little room for the conversation.

Headers are sent before an answer is known, so the cookie of a streamed answer names the turn that it waits for. A
commit token adds the answer to the cookie. For clients that send no token, the next response does: until then, the
answer is in the bounded memory of this process. A process that has neither refuses with 409 ``answer_elsewhere``, and
does not lose the turn.
"""

from __future__ import annotations

import base64
import json
import logging
import zlib
from typing import Any

from aiohttp import web
from aiohttp_session import Session
from cryptography.fernet import Fernet, MultiFernet

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.random_ids import random_id
from aiochatstream.conversations.user import SaveResult
from aiochatstream.errors import AnswerElsewhere, ConversationChanged
from aiochatstream.sessions.aiohttp_session_internals import fernet_of
from aiochatstream.sessions.commit import Commit
from aiochatstream.sessions.session_storage import MAX_COOKIE_BYTES
from aiochatstream.sessions.user_session import SESSION_KEY, UserSession

logger = logging.getLogger(__name__)

MAX_PACKED_CHARS = 32_768
"""Maximum characters of text to compress for a cookie."""


class CookieUserSession(UserSession):
    """A user whose conversations are in the cookie. ``store`` holds the last answers in the memory of this process."""

    async def load(self, name: str) -> Conversation:
        name = self._full(name)
        here = await self._store.load(self.id, name)
        entry = self._entries.get(name)
        if entry is None:
            return here or Conversation()
        sealed = unpack(entry["sealed"])
        if here is not None and (here.number > sealed.number or here.turn_id == sealed.turn_id):
            return await self._fitting(name, here)
        if entry["awaits_answer"] and not self.abandon_lost:
            for user_id in self._earlier_ids:  # under which the turn began, before a login
                here = await self._store.load(user_id, name)
                if here is not None and here.turn_id == sealed.turn_id:
                    return await self._fitting(name, here)
            raise AnswerElsewhere(
                "The last answer of this conversation is in another worker process, or was lost with it. "
                'Retry to reach that worker, or send "abandon_lost": true to continue without that answer.'
            )
        return sealed

    async def accept_turn(self, name: str, conversation: Conversation) -> None:
        await self._remember(self._full(name), conversation)

    async def save(self, name: str, conversation: Conversation, *, loaded: Conversation) -> SaveResult:
        name = self._full(name)
        conversation = conversation.without_thoughts()
        if not await self._fits_alone(name, conversation):
            left = await self.save_unanswered(name, loaded.begin(conversation.turn_id), loaded=loaded)
            return left._replace(stored=False)
        entries = await self._shrunk({**self._entries, name: _entry(conversation, answered=True)}, name)
        result = self._result(name, conversation, entries)
        await self._remember(name, result.conversation)
        token = Commit.of_turn(self.id, name, loaded, conversation).seal(self._fernet)
        return result._replace(commit=token)

    async def save_unanswered(self, name: str, conversation: Conversation, *, loaded: Conversation) -> SaveResult:
        return SaveResult(
            conversation,
            commit=Commit.of_none(self.id, self._full(name), loaded, conversation.turn_id).seal(self._fernet),
        )

    async def commit(self, token: str) -> SaveResult:
        """Add the turn of a commit token to the cookie.

        Raise BadRequest for an invalid token, and ConversationChanged for a token of another session or of another
        state of the conversation; then nothing has changed.
        """
        commit = Commit.open(token, self._fernet)
        in_namespace = commit.name == self._full(commit.name.rpartition("/")[2])
        if not in_namespace or commit.user_id not in (self.id, *self._earlier_ids):
            raise ConversationChanged("commit: the token belongs to another session.")
        entry = self._entries.get(commit.name)
        sealed = Conversation() if entry is None else unpack(entry["sealed"])
        if entry is not None and sealed.turn_id == commit.turn_id:
            if not entry["awaits_answer"] and (commit.turn is None or commit.turn in sealed.turns):
                return SaveResult(sealed)  # already there, and not dropped by abandon_lost
            before = sealed
        elif (sealed.number, sealed.turn_id) == (commit.number, commit.previous_turn_id):  # the cookie is older
            before = sealed.begin(commit.turn_id)
        else:
            raise ConversationChanged("commit: the token belongs to an earlier turn; the conversation has changed.")
        return await self._put(commit.name, commit.applied_to(before), answered=True)

    async def rewrite(self, name: str, conversation: Conversation, *, loaded: Conversation) -> SaveResult:
        conversation = conversation.without_thoughts()
        await self._remember(self._full(name), conversation)
        return await self._put(self._full(name), conversation, answered=True)

    async def put_in_session(self, name: str, conversation: Conversation, *, answered: bool) -> None:
        await self._put(self._full(name), conversation, answered=answered)

    async def _put(self, name: str, conversation: Conversation, *, answered: bool) -> SaveResult:
        self._catch_up()
        new = _entry(conversation, answered=answered)
        if self._entries.get(name) == new:
            return SaveResult(conversation)
        entries = await self._shrunk({**self._entries, name: new}, name)
        result = self._result(name, conversation, entries)
        self._data["conversations"] = entries
        self._write()
        return result

    def _result(self, name: str, conversation: Conversation, entries: dict[str, Any]) -> SaveResult:
        """Return the result of saving ``conversation`` if the session contains ``entries``."""
        others = {other: entry for other, entry in self._entries.items() if other != name}
        turns = len(conversation.turns) + sum(map(_turns_in, others.values()))
        return SaveResult(unpack(entries[name]["sealed"]), turns - sum(map(_turns_in, entries.values())))

    async def forget(self, name: str) -> bool:
        name = self._full(name)
        here = await self._store.load(self.id, name)
        entry = self._entries.get(name)
        sealed = Conversation() if entry is None else unpack(entry["sealed"])
        if entry is None and here is None:
            return False
        # the turn number continues, so that older cookies and other workers have an older state
        cleared = Conversation(number=max(sealed.number, here.number if here else 0)).begin(random_id())
        await self._remember(name, cleared)
        await self._put(name, cleared, answered=True)
        return bool(sealed.turns or (here and here.turns) or (entry and entry["awaits_answer"]))

    async def _make_room(self) -> None:
        if self._entries:
            self._data["conversations"] = await self._shrunk(self._entries)

    @property
    def _entries(self) -> dict[str, Any]:
        entries: dict[str, Any] = self._data.setdefault("conversations", {})
        return entries

    @property
    def _fernet(self) -> Fernet | MultiFernet:
        """Key of the cookies."""
        return fernet_of(self._storage)

    @property
    def _budget(self) -> int:
        """Maximum bytes of the session's cookies."""
        return getattr(self._storage, "max_bytes", MAX_COOKIE_BYTES)

    async def _remember(self, name: str, conversation: Conversation) -> None:
        # the cookie has precedence over an older branch in the memory of this process
        await self._store.forget(self.id, name)
        await self._store.save(self.id, name, conversation, expected_number=0)

    async def _fitting(self, name: str, conversation: Conversation) -> Conversation:
        """Return ``conversation`` without the oldest turns that exceed the cookie."""
        entries = await self._shrunk({**self._entries, name: _entry(conversation, answered=False)}, name)
        return unpack(entries[name]["sealed"])

    async def _fits_alone(self, name: str, conversation: Conversation) -> bool:
        """Return True if the newest turn alone fits into the cookie."""
        newest = conversation.drop_oldest(len(conversation.turns) - 1)
        if recent(newest) != newest:
            return False
        return await self._cookie_bytes({name: _entry(newest, answered=True)}) <= self._budget

    async def _shrunk(self, entries: dict[str, Any], newest: str | None = None) -> dict[str, Any]:
        """Return ``entries`` without the oldest turns of the largest conversations, so that they fit into the cookies.

        Cleared conversations are dropped first, the newest turn of the conversation ``newest`` last.
        """
        entries = dict(entries)
        while await self._cookie_bytes(entries) > self._budget:
            turns = {name: _turns_in(entry) for name, entry in entries.items()}
            others = [name for name in entries if name != newest]
            cleared = [name for name in others if not turns[name] and not entries[name]["awaits_answer"]]
            droppable = [name for name, count in turns.items() if count > (name == newest)]
            if cleared:
                del entries[cleared[0]]
            elif droppable:
                largest = max(droppable, key=lambda name: len(entries[name]["sealed"]))
                entries[largest] = await self._without_oldest(entries, largest, keep=int(largest == newest))
            elif others:
                del entries[others[0]]
            elif newest is not None and turns[newest]:
                entries[newest] = await self._without_oldest(entries, newest, keep=0)
            else:
                logger.warning("The session cookies exceed %d bytes: browsers may drop them.", self._budget)
                break
        return entries

    async def _without_oldest(self, entries: dict[str, Any], name: str, *, keep: int) -> dict[str, Any]:
        """Return the entry ``name`` without its oldest turns, as far as necessary; it keeps at least ``keep`` turns."""
        entry = entries[name]
        whole = unpack(entry["sealed"])
        too_few, enough = 0, len(whole.turns) - keep
        shortest = {**entry, "sealed": pack(whole.drop_oldest(enough))}
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            candidate = {**entry, "sealed": pack(whole.drop_oldest(middle))}
            if await self._cookie_bytes({**entries, name: candidate}) <= self._budget:
                enough, shortest = middle, candidate
            else:
                too_few = middle
        return shortest

    async def _cookie_bytes(self, entries: dict[str, Any]) -> int:
        """Return the bytes of the session's cookies with ``entries``."""
        session = Session(None, data=None, new=True, max_age=self._session.max_age)
        session.update({**self._session, SESSION_KEY: {**self._data, "conversations": entries}})
        probe = web.Response()
        await self._storage.save_session(self._request, probe, session)
        return sum(len(cookie.OutputString()) for cookie in probe.cookies.values() if cookie.value)


def _entry(conversation: Conversation, *, answered: bool) -> dict[str, Any]:
    """Return one conversation as an entry of the session."""
    return {"sealed": pack(recent(conversation)), "awaits_answer": not answered}


def _turns_in(entry: dict[str, Any]) -> int:
    return len(unpack(entry["sealed"]).turns)


def recent(conversation: Conversation) -> Conversation:
    """Return the newest turns that might fit into a cookie: compressing a megabyte would block the event loop."""
    count, chars = 0, 0
    for turn in reversed(conversation.turns):
        chars += len(turn.user) + len(turn.answer)
        if chars > MAX_PACKED_CHARS:
            break
        count += 1
    return conversation.drop_oldest(len(conversation.turns) - count)


def pack(conversation: Conversation) -> str:
    """Return the conversation in few characters that JSON does not escape."""
    text = json.dumps(conversation.to_dict(), ensure_ascii=False, separators=(",", ":"))
    return base64.b85encode(zlib.compress(text.encode(), 9)).decode()


def unpack(packed: str) -> Conversation:
    """Return the conversation of :func:`pack`."""
    return Conversation.from_dict(json.loads(zlib.decompress(base64.b85decode(packed))))
