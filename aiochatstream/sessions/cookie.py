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

from aiochatstream.conversation import Conversation
from aiochatstream.errors import AnswerElsewhere
from aiochatstream.sessions.user import UserSession

logger = logging.getLogger(__name__)

MAX_COOKIE_BYTES = 4096
"""What every browser keeps of one cookie: name, value and attributes."""


class CookieUserSession(UserSession):
    """A user whose conversations are in the cookie; ``store`` is this process's memory of last answers."""

    async def load(self, name: str) -> Conversation:
        here = await self._store.load(self.id, name)
        entry = self._entries.get(name)
        if entry is None:
            return here or Conversation()
        sealed = unpack(entry["sealed"])
        if here is not None and here.number > sealed.number:
            return here
        if entry["awaits_answer"]:
            if here is not None and here.begun == sealed.begun:
                return here
            raise AnswerElsewhere(
                "The last answer of this conversation is held by another worker process, or was lost with it. "
                "Send again to reach that worker, or POST /clear_context to begin anew."
            )
        return sealed

    async def begin(self, name: str, conversation: Conversation) -> None:
        await self._keep_here(name, conversation)

    async def save(self, name: str, conversation: Conversation, *, expected_number: int) -> None:
        await self._keep_here(name, conversation)

    async def note(self, name: str, conversation: Conversation, *, answered: bool) -> None:
        entry = self._entries.get(name)
        new = {"sealed": pack(conversation), "awaits_answer": not answered}
        if entry != new and (entry is not None or conversation.number):
            await self._seal(name, conversation, awaits_answer=not answered)

    async def forget(self, name: str) -> bool:
        here = await self._store.load(self.id, name)
        await self._store.forget(self.id, name)
        entry = self._entries.get(name)
        if entry is None:
            return here is not None
        # the number goes on, so that what another worker still remembers stays older than the cookie
        sealed = unpack(entry["sealed"])
        known = max(sealed.number, here.number if here else 0)
        await self._seal(name, Conversation(number=known + 1), awaits_answer=False)
        return bool(sealed.turns or entry["awaits_answer"] or (here and here.turns))

    @property
    def _entries(self) -> dict[str, Any]:
        entries: dict[str, Any] = self._data.setdefault("conversations", {})
        return entries

    async def _keep_here(self, name: str, conversation: Conversation) -> None:
        # in a cookie the last one wins: what this process remembers of an older branch is no obstacle
        await self._store.forget(self.id, name)
        await self._store.save(self.id, name, conversation, expected_number=0)

    async def _seal(self, name: str, conversation: Conversation, *, awaits_answer: bool) -> None:
        """Write into the session, without the oldest turns where the cookie would be larger than browsers keep."""
        self._entries[name] = {"sealed": pack(conversation), "awaits_answer": awaits_answer}
        self._write()
        while await self._cookie_bytes() > MAX_COOKIE_BYTES:
            largest = max(self._entries, key=lambda name: len(self._entries[name]["sealed"]))
            sealed = unpack(self._entries[largest]["sealed"])
            if sealed.turns:
                self._entries[largest]["sealed"] = pack(sealed.drop_oldest())
            elif len(self._entries) > 1:
                del self._entries[next(other for other in self._entries if other != name)]
            else:
                logger.warning("The session cookie is over %d bytes: browsers will drop it.", MAX_COOKIE_BYTES)
                return

    async def _cookie_bytes(self) -> int:
        probe = web.Response()
        await self._storage.save_session(self._request, probe, self._session)
        return len(probe.cookies[self._storage.cookie_name].OutputString())


def pack(conversation: Conversation) -> str:
    """The conversation in few characters that JSON need not escape."""
    text = json.dumps(conversation.to_dict(), ensure_ascii=False, separators=(",", ":"))
    return base64.b85encode(zlib.compress(text.encode(), 9)).decode()


def unpack(packed: str) -> Conversation:
    """What :func:`pack` packed."""
    return Conversation.from_dict(json.loads(zlib.decompress(base64.b85decode(packed))))
