"""The user behind a request, and that user's conversations."""

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
"""Key of this package in a session."""

SESSIONS_HINT = "call aiohttp_session.setup(app, MemoryStorage()) or set up another storage of aiohttp-session"

NO_PARAMS: dict[str, Any] = {"number": 0, "values": {}}

MAX_PARAMS_BYTES = 1024
"""Maximum bytes of a user's parameters as JSON: a cookie must hold them besides the conversation."""

EARLIER_IDS = 4
"""Maximum number of earlier user ids in a session: a cookie must hold them."""


class UserSession(User):
    """The user behind one request. The session contains the user's id and generation parameters.

    Nothing is written to the session before :meth:`put_in_session` or :meth:`save_params`, so a refused request changes
    nothing.

    :param store: store of the conversations.
    :param recent_params: parameters of users in the memory of this process, by user id. They have a number that grows
        with each change: an answer that began before a change, with an older session, does not revert it.
    :param account: the application's name of the user; the session then needs no id.
    """

    abandon_lost = False
    """Load a conversation without its last answer if this process does not have that answer. No effect unless
    conversations are stored in cookies."""

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
        """Id of the user's account, or the random id of the session; a new one if the session has none."""
        return self._data["id"] if self._account is None else account_id(self._account)

    def charge(self) -> None:
        """Charge the memory of this request's session and conversation to the user's account or the client's address.

        Requests that generate no answer are charged to the common share: they cost no place in the queue, so anyone can
        send many.
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
            conversation = await self._store.load(user_id, self._full(name))
            if conversation is not None:
                return conversation
        return Conversation()

    async def forget(self, name: str) -> bool:
        user_ids = (self.id, *self._earlier_ids)
        return any([await self._store.forget(user_id, self._full(name)) for user_id in user_ids])

    async def put_in_session(self, name: str, conversation: Conversation, *, answered: bool) -> None:
        """Update the session before the response begins.

        :param answered: True if the newest turn of ``conversation`` has ended.
        """
        if self._account is not None or SESSION_KEY in self._session:
            self._catch_up()
            return
        await self.refresh()  # a concurrent request may have written the session
        if SESSION_KEY not in self._session:
            self._write()

    async def rewrite(self, name: str, conversation: Conversation, *, loaded: Conversation) -> SaveResult:
        result = await super().rewrite(name, conversation, loaded=loaded)
        await self.put_in_session(name, result.conversation, answered=True)
        return result

    async def commit(self, token: str) -> SaveResult:
        """Add the turn of a commit token to the session. Raise BadRequest if conversations are stored elsewhere."""
        raise BadRequest("commit: this server does not store conversations in cookies.")

    @property
    def params(self) -> dict[str, Any]:
        """Parameters that the user has set, as JSON. They may be invalid: an earlier version may have stored them."""
        values: dict[str, Any] = self._newest_params()["values"]
        return values

    async def save_params(self, values: dict[str, Any]) -> None:
        """Save ``values`` as the user's parameters in the session. The response must not have begun.

        Raise InvalidValue if they are too large.
        """
        size = len(json.dumps(values))
        if size > MAX_PARAMS_BYTES:
            raise InvalidValue(
                f"generation_params: must be at most {MAX_PARAMS_BYTES} bytes as JSON, not {size}; "
                "shorten logit_bias or stop."
            )
        params = self._newest_params()
        if values != params["values"]:
            params = {"number": params["number"] + 1, "values": values}
            self._recent_params.put(self.id, json.dumps(params))
        if params != self._data.get(self._full("params"), NO_PARAMS):
            self._data[self._full("params")] = params
            await self._make_room()
            self._write()

    async def renew(self) -> None:
        """Give the session a new identity, for example at a login, so that the old one cannot be used any more.

        The response must not have begun.
        """
        self.charge()
        await self.refresh()
        if SESSION_KEY in self._session:
            self._change_id()
            await self._make_room()
            self._write()
        self._session.changed()
        if self._session.identity is not None:  # sessions in cookies have none
            old = Session(self._session.identity, data=None, new=False)
            await self._storage.save_session(self._request, web.Response(), old)  # deletes it
            drop_identity(self._session)

    async def grant(self, role: str) -> None:
        """Give the session ``role`` and a new identity."""
        await self.renew()
        self._data["roles"] = {**self._data.get("roles", {}), self._namespace: role}
        await self._make_room()
        self._write()

    async def refresh(self) -> None:
        """Load the changes that other requests have made to the session."""
        if not is_changed(self._session):  # changes of the application must not be lost
            await self._refresh()
        self._take_from_session()

    def _change_id(self) -> None:
        """Change the user id if the session is a cookie, because older cookies contain the present one.

        Conversations stay under the earlier id until they continue; what an older cookie adds later is ignored.
        """
        if self._session.identity is None:
            self._data["was"] = [self._data["id"], *self._earlier_ids][:EARLIER_IDS]
            self._data["id"] = random_id()

    @property
    def _earlier_ids(self) -> list[str]:
        """Ids of the user before a new identity, the newest first, for finding conversations."""
        earlier = self._data.get("was")
        if self._account is not None or not isinstance(earlier, list):  # unencrypted cookies may contain anything
            return []
        return [user_id for user_id in earlier[:EARLIER_IDS] if is_random_id(user_id)]

    async def _make_room(self) -> None:
        """Drop turns until the session with ``_data`` can be stored."""

    def _take_from_session(self) -> None:
        self._data = _data_of(self._session) or self._data

    def _newest_params(self) -> dict[str, Any]:
        candidates = (self._data.get(self._full("params")), json.loads(self._recent_params.get(self.id) or "null"))
        return max(filter(_are_params, candidates), key=lambda params: int(params["number"]), default=NO_PARAMS)

    def _catch_up(self) -> None:
        """Put the newest parameters into the session, without marking it as changed."""
        newest = self._newest_params()
        if newest != self._data.get(self._full("params"), NO_PARAMS):
            self._data[self._full("params")] = newest
            set_without_change(self._session, SESSION_KEY, self._data)

    async def _refresh(self) -> None:
        await reload_session(self._request, self._session)

    def pinned(self) -> AbstractContextManager[None]:
        """Protect a session in memory from being dropped in this block."""
        identity = self._session.identity
        if identity is None or not isinstance(self._storage, MemoryStorage):
            return nullcontext()
        return self._storage.pinned(identity)

    async def save_with_stream(self, response: web.StreamResponse) -> None:
        """Save the session with a response that will be streamed, which aiohttp-session does not support."""
        if is_changed(self._session):
            await self._storage.save_session(self._request, response, self._session)

    @property
    def _storage(self) -> AbstractStorage:
        storage: AbstractStorage = self._request[STORAGE_KEY]
        return storage

    def _write(self) -> None:
        self._session[SESSION_KEY] = self._data


def granted_role(session: Session, namespace: str) -> object:
    """Return the role that :meth:`UserSession.grant` gave to the session; None if there is none."""
    roles = (_data_of(session) or {}).get("roles")
    return roles.get(namespace) if isinstance(roles, dict) else None


def _data_of(session: Session) -> dict[str, Any] | None:
    """Return the data of this package in the session; None if there is none, or it is invalid."""
    data = session.get(SESSION_KEY)
    return dict(data) if isinstance(data, dict) and is_random_id(data.get("id")) else None


def _are_params(data: Any) -> TypeGuard[dict[str, Any]]:
    """Return True for data of :meth:`UserSession.save_params`: unencrypted cookies may contain anything."""
    return isinstance(data, dict) and isinstance(data.get("number"), int) and isinstance(data.get("values"), dict)


async def load_session(request: web.Request) -> Session:
    """Return the session of ``request``; a new one if the cookie cannot be decoded.

    Raise :class:`~aiochatstream.errors.SessionsNotSetUp` without the middleware of aiohttp-session.
    """
    if STORAGE_KEY not in request:
        raise SessionsNotSetUp(f"This application has no sessions: {SESSIONS_HINT}.")
    try:
        return await get_session(request)
    except ValueError:  # some storages do not expect bytes that are not UTF-8
        return await new_session(request)


async def reload_session(request: web.Request, session: Session) -> None:
    """Reload ``session`` of ``request`` in place: the application may hold on to the object."""
    request[AIOHTTP_SESSION_KEY] = None
    fresh = await load_session(request)
    replace_contents(session, fresh)
    request[AIOHTTP_SESSION_KEY] = session


def keeps_data_in_cookie(request: web.Request) -> bool:
    """Return True if sessions are encrypted cookies, which can contain conversations."""
    return isinstance(request.get(STORAGE_KEY), CookieStorage | EncryptedCookieStorage)
