"""Conversations in an encrypted cookie.

The cookie holds all turns but the last one: headers go out before an answer is known. That one waits in the bounded
memory of the process and enters the cookie with the next response. A cookie says which turn it waits for, so that a
process that does not have it refuses (409 answer_elsewhere) rather than forgets it.
"""

from __future__ import annotations

import base64
import json
import logging
import zlib
from typing import Any

from aiohttp import web
from aiohttp_session import Session

from aiochatstream.conversation import Conversation
from aiochatstream.errors import AnswerElsewhere
from aiochatstream.sessions.user import SESSION_KEY, UserSession

logger = logging.getLogger(__name__)

MAX_COOKIE_BYTES = 4096
"""What every browser keeps of one cookie: name, value and attributes."""

MAX_PACKED_CHARS = 32_768
"""More text than this is not even tried."""


class CookieUserSession(UserSession):
    """A user whose conversations are in the cookie; ``store`` is this process's memory of last answers."""

    async def load(self, name: str) -> Conversation:
        name = self._full(name)
        here = await self._store.load(self.id, name)
        entry = self._entries.get(name)
        if entry is None:
            return here or Conversation()
        sealed = unpack(entry["sealed"])
        if here is not None and (here.number > sealed.number or here.begun == sealed.begun):
            return await self._what_fits(name, here)
        if entry["awaits_answer"]:
            raise AnswerElsewhere(
                "The last answer of this conversation is held by another worker process, or was lost with it. "
                "Send again to reach that worker, or POST /clear_context to begin anew."
            )
        return sealed

    async def accept_turn(self, name: str, conversation: Conversation) -> None:
        await self._keep_here(self._full(name), conversation)

    async def save(self, name: str, conversation: Conversation, *, expected_number: int) -> None:
        await self._keep_here(self._full(name), conversation)

    async def put_in_session(self, name: str, conversation: Conversation, *, answered: bool) -> None:
        await self._put(self._full(name), conversation, answered=answered)

    async def _put(self, name: str, conversation: Conversation, *, answered: bool) -> None:
        self._catch_up()
        new = {"sealed": pack(recent(conversation)), "awaits_answer": not answered}
        if self._entries.get(name) != new:
            self._data["conversations"] = await self._shrunk({**self._entries, name: new}, name)
            self._write()

    async def forget(self, name: str) -> bool:
        name = self._full(name)
        here = await self._store.load(self.id, name)
        entry = self._entries.get(name)
        sealed = Conversation() if entry is None else unpack(entry["sealed"])
        # the number goes on, so that what an older cookie or another worker still holds stays older than this
        cleared = Conversation(number=max(sealed.number, here.number if here else 0) + 1)
        if entry is None and here is None:
            return False
        await self._keep_here(name, cleared)
        await self._put(name, cleared, answered=True)
        return bool(sealed.turns or (here and here.turns) or (entry and entry["awaits_answer"]))

    async def _make_room(self) -> None:
        if self._entries:
            self._data["conversations"] = await self._shrunk(self._entries)

    @property
    def _entries(self) -> dict[str, Any]:
        entries: dict[str, Any] = self._data.setdefault("conversations", {})
        return entries

    async def _keep_here(self, name: str, conversation: Conversation) -> None:
        # in a cookie the last one wins: what this process remembers of an older branch is no obstacle
        await self._store.forget(self.id, name)
        await self._store.save(self.id, name, conversation, expected_number=0)

    async def _what_fits(self, name: str, conversation: Conversation) -> Conversation:
        """``conversation`` without the oldest turns that the cookie has no room for."""
        entry = {"sealed": pack(recent(conversation)), "awaits_answer": True}
        return unpack((await self._shrunk({**self._entries, name: entry}, name))[name]["sealed"])

    async def _shrunk(self, entries: dict[str, Any], newest: str | None = None) -> dict[str, Any]:
        """``entries`` without the oldest turns of the largest conversations, so that browsers keep the cookie."""
        entries = dict(entries)
        while await self._cookie_bytes(entries) > MAX_COOKIE_BYTES:
            largest = max(entries, key=lambda name: len(entries[name]["sealed"]))
            if unpack(entries[largest]["sealed"]).turns:
                entries[largest] = await self._without_oldest(entries, largest)
            elif len(entries) > 1:
                del entries[next(name for name in entries if name != newest)]
            else:
                logger.warning("The session cookie is over %d bytes: browsers will drop it.", MAX_COOKIE_BYTES)
                break
        return entries

    async def _without_oldest(self, entries: dict[str, Any], name: str) -> dict[str, Any]:
        """The entry ``name`` with as few of its oldest turns left out as need be (at most all), by bisection."""
        entry = entries[name]
        whole = unpack(entry["sealed"])
        too_few, enough = 0, len(whole.turns)
        shortest = {**entry, "sealed": pack(whole.drop_oldest(enough))}
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            candidate = {**entry, "sealed": pack(whole.drop_oldest(middle))}
            if await self._cookie_bytes({**entries, name: candidate}) <= MAX_COOKIE_BYTES:
                enough, shortest = middle, candidate
            else:
                too_few = middle
        return shortest

    async def _cookie_bytes(self, entries: dict[str, Any]) -> int:
        """How long the session's cookie is with ``entries`` in it."""
        session = Session(None, data=None, new=True)
        session.update({**self._session, SESSION_KEY: {**self._data, "conversations": entries}})
        probe = web.Response()
        await self._storage.save_session(self._request, probe, session)
        return len(probe.cookies[self._storage.cookie_name].OutputString())


def recent(conversation: Conversation) -> Conversation:
    """The newest turns, as many as might fit a cookie at all: packing a megabyte would hold the event loop."""
    kept, chars = 0, 0
    for turn in reversed(conversation.turns):
        chars += len(turn.user) + len(turn.answer)
        if chars > MAX_PACKED_CHARS:
            break
        kept += 1
    return conversation.drop_oldest(len(conversation.turns) - kept)


def pack(conversation: Conversation) -> str:
    """The conversation in few characters that JSON need not escape."""
    text = json.dumps(conversation.to_dict(), ensure_ascii=False, separators=(",", ":"))
    return base64.b85encode(zlib.compress(text.encode(), 9)).decode()


def unpack(packed: str) -> Conversation:
    """What :func:`pack` packed."""
    return Conversation.from_dict(json.loads(zlib.decompress(base64.b85decode(packed))))
