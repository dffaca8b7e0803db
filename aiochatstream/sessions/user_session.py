"""Who asks, by the request's aiohttp-session, and what was said with that user."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard

from aiohttp import web
from aiohttp_session import SESSION_KEY as AIOHTTP_SESSION_KEY
from aiohttp_session import STORAGE_KEY, AbstractStorage, Session, get_session, new_session
from aiohttp_session.cookie_storage import EncryptedCookieStorage

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.lru import COMMON, BoundedMap
from aiochatstream.conversations.memory_store import MemoryConversationStore
from aiochatstream.conversations.random_ids import is_random_id, random_id
from aiochatstream.conversations.store import ConversationStore
from aiochatstream.conversations.user import SaveResult, User, account_id
from aiochatstream.errors import BadRequest, InvalidValue, SessionsNotSetUp
from aiochatstream.sessions.aiohttp_session_internals import (
    drop_identity,
    is_changed,
    replace_contents,
    set_without_change,
)
from aiochatstream.sessions.client_address import client_network
from aiochatstream.sessions.encrypted_cookie import CookieStorage
from aiochatstream.sessions.memory_storage import SHARE, MemoryStorage

SESSION_KEY = "aiochatstream"
"""Our one key in the session, beside the app's own."""

SESSIONS_HINT = "call aiohttp_session.setup(app, MemoryStorage()) or set up another storage of aiohttp-session"

NO_PARAMS: dict[str, Any] = {"number": 0, "values": {}}

MAX_PARAMS_BYTES = 1024
"""What the parameters of a user may take as JSON: a cookie has to hold them beside the conversation."""


EARLIER_IDS = 4
"""How many of a user's earlier ids a session knows: a cookie has to hold them."""


class UserSession(User):
    """One request's view of its user. The conversations live in ``store``; the session holds the user's id, and the
    parameters that the user has set.

    ``recent_params`` is this process's memory of such parameters, by the user's id. They carry a number that grows with
    each change, so that an answer that began before a change does not take it back with its older view of the session.

    Where the app knows the user, ``account`` is what it calls the user, and the session need not hold an id.

    Nothing is written into the session before :meth:`put_in_session` or :meth:`keep_params`: a refused request leaves
    no trace.
    """

    abandon_lost = False
    """Load a conversation without its last answer if no process that is reached has that answer. Without effect where
    conversations live on the server."""

    def __init__(
        self,
        request: web.Request,
        session: Session,
        store: ConversationStore,
        recent_params: BoundedMap,
        namespace: str = "",
        account: str | None = None,
    ) -> None:
        self._account = account
        self._data: dict[str, Any] = {"id": random_id()}
        super().__init__(self._data["id"], store, namespace)
        self._request = request
        self._session = session
        self._recent_params = recent_params
        self._take_from_session()
        request.setdefault(SHARE, COMMON)

    @property
    def id(self) -> str:
        """Id of the user's account, or the random id of the session; a fresh one if the session has none yet."""
        return self._data["id"] if self._account is None else account_id(self._account)

    def charge(self) -> None:
        """Charge what this request keeps in memory to the user's account, or to the client's address.

        Other sessions and conversations are charged to the common share: an answer costs a place in the queue, a
        session with settings or an import costs nothing.
        """
        share = client_network(self._request) if self._account is None else f"account:{self._account}"
        self._request[SHARE] = share
        if isinstance(self._store, MemoryConversationStore):
            self._store = self._store.charged_to(share)

    @property
    def owner(self) -> str:
        return f"session:{self.id}" if self._account is None else f"account:{self._account}"

    @property
    def owners(self) -> list[str]:
        return [self.owner, *(f"session:{user_id}" for user_id in self._earlier_ids)]

    async def load(self, name: str) -> Conversation:
        for user_id in (self.id, *self._earlier_ids):
            kept = await self._store.load(user_id, self._full(name))
            if kept is not None:
                return kept
        return Conversation()

    async def forget(self, name: str) -> bool:
        user_ids = (self.id, *self._earlier_ids)
        return any([await self._store.forget(user_id, self._full(name)) for user_id in user_ids])

    async def put_in_session(self, name: str, conversation: Conversation, *, answered: bool) -> None:
        """Write into the session what it has to hold, just before a response begins.

        :param answered: whether the newest turn of ``conversation`` has ended.
        """
        if self._account is not None or SESSION_KEY in self._session:
            self._catch_up()
            return
        await self.refresh()  # where another request was faster, this is one user
        if SESSION_KEY not in self._session:
            self._write()

    async def rewrite(self, name: str, conversation: Conversation, *, loaded: Conversation) -> SaveResult:
        kept = await super().rewrite(name, conversation, loaded=loaded)
        await self.put_in_session(name, kept.conversation, answered=True)
        return kept

    async def commit(self, token: str) -> SaveResult:
        """Take the turn of a commit token into the session. Raises BadRequest where the session needs none."""
        raise BadRequest("commit: the conversations of this server are not kept in cookies.")

    @property
    def params(self) -> dict[str, Any]:
        """What the user has set of the parameters, as JSON has it: whatever some server once took."""
        values: dict[str, Any] = self._newest_params()["values"]
        return values

    async def keep_params(self, values: dict[str, Any]) -> None:
        """Keep ``values`` as the user's parameters, in the session. The response must not have begun.

        Raises InvalidValue where they are too large.
        """
        size = len(json.dumps(values))
        if size > MAX_PARAMS_BYTES:
            raise InvalidValue(
                f"generation_params: what you have set takes {size} bytes as JSON, of at most {MAX_PARAMS_BYTES}; "
                f"shorten logit_bias or stop."
            )
        kept = self._newest_params()
        if values != kept["values"]:
            kept = {"number": kept["number"] + 1, "values": values}
            self._recent_params.put(self.id, json.dumps(kept))
        if kept != self._data.get(self._full("params"), NO_PARAMS):
            self._data[self._full("params")] = kept
            await self._make_room()
            self._write()

    async def renew(self) -> None:
        """Give the session another identity, at a login say: who has come to know the old one is not to have the new.

        The response must not have begun.
        """
        self.charge()
        await self.refresh()
        if SESSION_KEY in self._session:
            self._change_id()
            await self._make_room()
            self._write()
        self._session.changed()
        if self._session.identity is not None:  # storages that keep nothing in the server know none
            old = Session(self._session.identity, data=None, new=False)
            await self._storage.save_session(self._request, web.Response(), old)  # an empty one is forgotten
            drop_identity(self._session)

    async def grant(self, role: str) -> None:
        """Give the session ``role``, and another identity."""
        await self.renew()
        self._data["roles"] = {**self._data.get("roles", {}), self._namespace: role}
        await self._make_room()
        self._write()

    async def refresh(self) -> None:
        """Look again at what other requests have put into the session since this one came."""
        if not is_changed(self._session):  # what the app has done to it must not be undone
            await self._refresh()
        self._take_from_session()

    def _change_id(self) -> None:
        """Go by another id from now on, where an older cookie still holds the one of now. What was said goes by that
        one until the conversation goes on; what an older cookie adds to it is not seen then.
        """
        if self._session.identity is None:
            self._data["was"] = [self._data["id"], *self._earlier_ids][:EARLIER_IDS]
            self._data["id"] = random_id()

    @property
    def _earlier_ids(self) -> list[str]:
        """By which what was said before a renewal is found, the newest first."""
        earlier = self._data.get("was")
        if self._account is not None or not isinstance(earlier, list):  # in an open cookie there may be anything
            return []
        return [user_id for user_id in earlier[:EARLIER_IDS] if is_random_id(user_id)]

    async def _make_room(self) -> None:
        """See to it that the session can be kept with all that is in ``_data``."""

    def _take_from_session(self) -> None:
        self._data = _kept_in(self._session) or self._data

    def _newest_params(self) -> dict[str, Any]:
        here = json.loads(self._recent_params.get(self.id) or "null")
        known: list[dict[str, Any]] = [one for one in (self._data.get(self._full("params")), here) if _are_params(one)]
        return max(known, key=lambda one: one["number"], default=NO_PARAMS)

    def _catch_up(self) -> None:
        """Take over the newest parameters, to be saved with the session if that is saved at all."""
        newest = self._newest_params()
        if newest != self._data.get(self._full("params"), NO_PARAMS):
            self._data[self._full("params")] = newest
            set_without_change(self._session, SESSION_KEY, self._data)

    async def _refresh(self) -> None:
        await reload_session(self._request, self._session)

    def pinned(self) -> AbstractContextManager[None]:
        """In this block, a storage in memory keeps the session, however many others there are."""
        identity = self._session.identity
        if identity is None or not isinstance(self._storage, MemoryStorage):
            return nullcontext()
        return self._storage.pinned(identity)

    async def save_with_stream(self, response: web.StreamResponse) -> None:
        """Save the session with a response that is going to be streamed, which aiohttp-session does not do."""
        if is_changed(self._session):
            await self._storage.save_session(self._request, response, self._session)

    @property
    def _storage(self) -> AbstractStorage:
        storage: AbstractStorage = self._request[STORAGE_KEY]
        return storage

    def _write(self) -> None:
        self._session[SESSION_KEY] = self._data


def granted_role(session: Session, namespace: str) -> object:
    """What :meth:`UserSession.grant` gave the session, None if nothing."""
    roles = (_kept_in(session) or {}).get("roles")
    return roles.get(namespace) if isinstance(roles, dict) else None


def _kept_in(session: Session) -> dict[str, Any] | None:
    """Ours of what the session holds."""
    kept = session.get(SESSION_KEY)
    return dict(kept) if isinstance(kept, dict) and is_random_id(kept.get("id")) else None


def _are_params(kept: Any) -> TypeGuard[dict[str, Any]]:
    """Whether this is what :meth:`UserSession.keep_params` keeps: in an open cookie there may be anything."""
    return isinstance(kept, dict) and isinstance(kept.get("number"), int) and isinstance(kept.get("values"), dict)


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


async def reload_session(request: web.Request, session: Session) -> None:
    """Bring ``session``, that of ``request``, up to date, in place: the app may hold on to the object."""
    request[AIOHTTP_SESSION_KEY] = None
    fresh = await load_session(request)
    replace_contents(session, fresh)
    request[AIOHTTP_SESSION_KEY] = session


def keeps_data_in_cookie(request: web.Request) -> bool:
    """Whether the session is an encrypted cookie, which can hold the conversations themselves."""
    return isinstance(request.get(STORAGE_KEY), CookieStorage | EncryptedCookieStorage)
