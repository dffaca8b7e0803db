"""Who asks, by the request's aiohttp-session, and what was said with that user."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp_session import SESSION_KEY as AIOHTTP_SESSION_KEY
from aiohttp_session import STORAGE_KEY, AbstractStorage, Session, get_session, new_session
from aiohttp_session.cookie_storage import EncryptedCookieStorage

from aiochatstream.conversation import Conversation
from aiochatstream.errors import SessionsNotSetUp
from aiochatstream.sessions.memory import random_id
from aiochatstream.sessions.store import ConversationStore

SESSION_KEY = "aiochatstream"
"""Our one key in the session, beside the app's own."""

SESSIONS_HINT = "call aiohttp_session.setup(app, MemoryStorage()) or set up another storage of aiohttp-session"


class UserSession:
    """One request's view of its user. The conversations live in ``store``; the session holds the user's id.

    Nothing is written into the session before :meth:`put_in_session`: a refused request leaves no trace.

    :param namespace: keeps apart what several ChatStreams have in the same session and in the same store.
    """

    def __init__(self, request: web.Request, session: Session, store: ConversationStore, namespace: str = "") -> None:
        self._request = request
        self._session = session
        self._store = store
        self._namespace = namespace
        self._data = _kept_in(session) or {"id": random_id()}

    @property
    def id(self) -> str:
        """The user's random id; a fresh one where the session knows none yet."""
        return str(self._data["id"])

    async def load(self, name: str) -> Conversation:
        """The conversation ``name`` as it was last kept; an empty one where there is none."""
        return await self._store.load(self.id, self._full(name)) or Conversation()

    async def accept_turn(self, name: str, conversation: Conversation) -> None:
        """A turn was accepted, which made ``conversation`` of what was loaded. The session stays as it is."""

    async def save(self, name: str, conversation: Conversation, *, expected_number: int) -> None:
        """Keep ``conversation`` (see :meth:`ConversationStore.save`). May come after the response has begun."""
        await self._store.save(self.id, self._full(name), conversation, expected_number=expected_number)

    async def put_in_session(self, name: str, conversation: Conversation, *, answered: bool) -> None:
        """Write into the session what it has to hold, just before a response begins.

        :param answered: whether the newest turn of ``conversation`` has ended.
        """
        if SESSION_KEY in self._session:
            return
        await self._refresh()
        if SESSION_KEY not in self._session:
            self._write()

    async def grant(self, role: str) -> None:
        """Give the session ``role``, and another identity: who has come to know the old one is not to have the role."""
        await self._refresh()
        self._data["roles"] = {**self._data.get("roles", {}), self._namespace: role}
        self._write()
        if self._session.identity is not None:  # storages that keep nothing in the server know none
            old = Session(self._session.identity, data=None, new=False)
            await self._storage.save_session(self._request, web.Response(), old)  # an empty one is forgotten
            self._session._identity, self._session._new = None, True  # in place: the app may hold on to the object

    async def _refresh(self) -> None:
        """Bring the session up to date, in place: the app may hold on to the object.

        What the app has done to its session since this request came must not be undone; then it stays as it is.
        """
        if self._session._changed:
            return
        self._request[AIOHTTP_SESSION_KEY] = None
        fresh = await load_session(self._request)
        self._session._mapping = dict(fresh)
        self._session._identity, self._session._new = fresh.identity, fresh.new
        self._request[AIOHTTP_SESSION_KEY] = self._session
        self._data = _kept_in(self._session) or self._data  # another request was faster: this is one user

    async def forget(self, name: str) -> bool:
        """Drop the conversation ``name``; tell whether there was something in it."""
        return await self._store.forget(self.id, self._full(name))

    async def save_with_stream(self, response: web.StreamResponse) -> None:
        """Save the session with a response that is going to be streamed, which aiohttp-session does not do."""
        if self._session._changed:
            await self._storage.save_session(self._request, response, self._session)

    @property
    def _storage(self) -> AbstractStorage:
        storage: AbstractStorage = self._request[STORAGE_KEY]
        return storage

    def _write(self) -> None:
        self._session[SESSION_KEY] = self._data

    def _full(self, name: str) -> str:
        """The conversation's name in the store and in the session."""
        return f"{self._namespace}/{name}" if self._namespace else name


def granted_role(session: Session, namespace: str) -> object:
    """What :meth:`UserSession.grant` gave the session, None if nothing."""
    return (_kept_in(session) or {}).get("roles", {}).get(namespace)


def _kept_in(session: Session) -> dict[str, Any] | None:
    """Ours of what the session holds."""
    kept = session.get(SESSION_KEY)
    return dict(kept) if isinstance(kept, dict) and "id" in kept else None


async def load_session(request: web.Request) -> Session:
    """The request's session. A cookie that cannot even be read gives a fresh one.

    Raises :class:`~aiochatstream.errors.SessionsNotSetUp` without aiohttp-session's middleware.
    """
    if STORAGE_KEY not in request:
        raise SessionsNotSetUp(f"This application has no sessions: {SESSIONS_HINT}.")
    try:
        return await get_session(request)
    except ValueError:  # the stock storages do not expect bytes that are no UTF-8
        return await new_session(request)


def keeps_data_in_cookie(request: web.Request) -> bool:
    """Whether the session is an encrypted cookie, which can hold the conversations themselves."""
    return isinstance(request.get(STORAGE_KEY), EncryptedCookieStorage)
